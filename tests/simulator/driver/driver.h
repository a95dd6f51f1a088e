// What the files of the simulated driver share: its objects, its settings, its log.
//
// Device memory is host memory. A stream is a queue of closures, which run when somebody waits for the stream
// or, unless streams are deferred, at once. A kernel is a C function that tests/simulator/ptx made of its PTX.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

// cuda.h renames these to their newest version; each is defined here by its real name.
#undef cuDeviceTotalMem
#undef cuMemAlloc
#undef cuMemFree
#undef cuMemGetAddressRange
#undef cuMemGetInfo

#define API extern "C" __attribute__((visibility("default")))

// ---------------------------------------------------------------- settings (settings.cpp)

struct Settings {
  int devices, threads_per_multiprocessor, capability;
  size_t memory;  // bytes per device
  bool peers;     // whether devices can see each other's memory
  bool executes;  // whether a launch runs the kernel
  std::vector<int> multiprocessors;  // one for all devices, or one for each
};
const Settings& settings();
int multiprocessors(int device);

// ---------------------------------------------------------------- the log (log.cpp)

// One lock for the whole driver: callbacks of one stream may launch on another.
extern std::recursive_mutex driver_mutex;
#define LOCK std::lock_guard<std::recursive_mutex> lock_(driver_mutex)

// `event` takes a JSON object, `violation` a sentence about what a GPU would refuse, or would not notice.
__attribute__((format(printf, 1, 2))) void event(const char* format, ...);
__attribute__((format(printf, 1, 2))) void violation(const char* format, ...);
API void sim_missing(const char* function);

// ---------------------------------------------------------------- objects, by the names that cuda.h gives them

using Work = std::function<void()>;

struct CUctx_st {
  int device = 0;
  int retained = 0;
  unsigned flags = 0;
  CUstream_st* legacy = nullptr;  // the stream of handle 0
  std::set<CUstream_st*> streams;
  std::set<int> peers;
  std::map<int, size_t> limits;
};
struct CUgraph_st {
  std::vector<Work> nodes;
  bool invalid = false;
};
struct CUgraphExec_st {
  std::vector<Work> nodes;
};
struct CUstream_st {
  CUctx_st* context = nullptr;
  unsigned long long id = 0;
  unsigned flags = 0;
  int priority = 0;
  std::deque<Work> queue;
  uint64_t enqueued = 0, done = 0;
  CUgraph_st* capturing = nullptr;
  bool began_capture = false;  // or joined it by an event
  CUstreamCaptureMode mode{};
  unsigned long long capture_id = 0;
};
struct CUevent_st {
  CUctx_st* context = nullptr;
  CUstream_st* stream = nullptr;
  uint64_t ticket = 0;  // of the stream's work that was enqueued before
  double milliseconds = 0;
  int queries = 0;
  CUgraph_st* captured = nullptr;
};
struct Parameter {
  unsigned offset, size;
};
struct CUmod_st {
  CUctx_st* context = nullptr;
  std::string image;
  uint64_t hash = 0;
  void* translation = nullptr;  // the kernels as C, a shared object
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};
struct CUfunc_st {
  CUmod_st* module = nullptr;
  std::string name;
  std::vector<Parameter> parameters;
  unsigned parameter_bytes = 0;
  void (*run)(unsigned char* parameters, const unsigned* grid, const unsigned* block) = nullptr;
};
struct Allocation {
  uintptr_t base;
  size_t size;
  int device;  // HOST for pinned memory
  char* mapping;
  size_t mapped;
  bool contains(uintptr_t p, size_t n) const { return p >= base && p + n <= base + size; }
};
constexpr int HOST = -1;

// ---------------------------------------------------------------- devices.cpp

CUctx_st* current();             // the calling thread's context, or null
CUctx_st* primary(int device);   // made at its first use
bool is_device(int device);
std::vector<CUctx_st*> all_contexts();
#define NEED_CONTEXT \
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT

// ---------------------------------------------------------------- memory.cpp

// The allocation that `p` points into, or null. A copy: another thread may free it.
std::unique_ptr<Allocation> find_allocation(uintptr_t p);

// ---------------------------------------------------------------- streams.cpp

extern std::set<CUstream_st*> all_streams;
CUstream_st* new_stream(CUctx_st*, unsigned flags, int priority);
CUstream_st* stream_of(CUstream handle);  // null for a stream that doesn't exist
#define STREAM(handle)               \
  auto* stream = stream_of(handle);  \
  if (!stream) return CUDA_ERROR_INVALID_HANDLE

CUresult enqueue(CUstream_st*, Work);
void finish(CUstream_st*);  // runs all that is enqueued
void finish(CUstream_st*, uint64_t ticket);
void finish(CUctx_st*);

// ---------------------------------------------------------------- graphs.cpp

// An error, and a violation, while a capture forbids what `function` does.
CUresult check_capture_allows(const char* function);
#define NOT_WHILE_CAPTURING(function) \
  if (CUresult error_ = check_capture_allows(function)) return error_
