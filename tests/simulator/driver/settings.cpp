// Settings from the environment; python -m tests.simulator writes them.
#include "driver.h"

#include <cstdlib>

static long number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtol(text, nullptr, 0) : otherwise;
}

static std::vector<int> numbers(const char* name, const char* otherwise) {
  const char* text = getenv(name);
  std::vector<int> result;
  char* end = const_cast<char*>(text && *text ? text : otherwise);
  do {
    result.push_back((int)strtol(end, &end, 0));
  } while (*end++ == ',');
  return result;
}

const Settings& settings() {
  static const Settings read{
      (int)number("SIMULATOR_DEVICES", 2),
      (int)number("SIMULATOR_THREADS", 2048),
      (int)number("SIMULATOR_CAPABILITY", 90),
      (size_t)number("SIMULATOR_MEMORY", 8l << 30),
      number("SIMULATOR_PEERS", 0) != 0,
      number("SIMULATOR_EXECUTE", 1) != 0,
      numbers("SIMULATOR_MULTIPROCESSORS", "4,6"),
  };
  return read;
}

API int sim_executes() { return settings().executes; }

int multiprocessors(int device) {
  auto& each = settings().multiprocessors;
  return each[std::min<size_t>(device, each.size() - 1)];
}
