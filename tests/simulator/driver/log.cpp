// What happened and what was wrong, for the tests to read.
#include "driver.h"

#include <cstdarg>
#include <cstdio>

std::recursive_mutex driver_mutex;
static std::vector<std::string> events, violations;

static std::string formatted(const char* format, va_list arguments) {
  char text[4096];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

void event(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  LOCK;
  events.push_back(formatted(format, arguments));
  va_end(arguments);
}

void violation(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  LOCK;
  violations.push_back(formatted(format, arguments));
  va_end(arguments);
  fprintf(stderr, "[simulator] violation: %s\n", violations.back().c_str());
}

// A function that exists by its name alone. Who probes for it copes with the error that it returns.
API void sim_missing(const char* function) {
  static std::set<std::string> reported;
  LOCK;
  if (reported.insert(function).second) fprintf(stderr, "[simulator] not implemented: %s\n", function);
}

static const char* joined(const std::vector<std::string>& lines) {
  static std::string all;
  all.clear();
  for (auto& line : lines) all += line + "\n";
  return all.c_str();
}
API const char* sim_events() {
  LOCK;
  return joined(events);
}
API const char* sim_violations() {
  LOCK;
  return joined(violations);
}
API void sim_clear_events() {
  LOCK;
  events.clear();
}
API void sim_clear_violations() {
  LOCK;
  violations.clear();
}
API void sim_violation(const char* text) { violation("%s", text); }
