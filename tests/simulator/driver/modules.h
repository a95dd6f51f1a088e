// What launches ask of modules.
#pragma once
#include "driver.h"

bool is_loaded(CUfunction);  // false also for the function of an unloaded module
