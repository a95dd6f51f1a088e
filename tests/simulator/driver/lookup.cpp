// Functions by name.
#include "driver.h"

#include <dlfcn.h>

API CUresult cuGetProcAddress_v2(const char* name, void** out, int, cuuint64_t,
                                 CUdriverProcAddressQueryResult* status) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  for (const char* suffix : {"_v3", "_v2", ""}) {
    *out = dlsym(self, (std::string(name) + suffix).c_str());
    if (*out) break;
  }
  if (status) *status = *out ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  if (*out) return CUDA_SUCCESS;
  sim_missing(name);
  return CUDA_ERROR_NOT_FOUND;
}
