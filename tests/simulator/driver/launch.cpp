// Launches: what a GPU would refuse or not notice is checked, then the kernel's C translation runs.
#include "modules.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

// What a launch copies, since its caller's values may change before it runs; a graph runs it again.
struct Launch {
  CUfunction function;
  std::vector<uint64_t> parameters;   // as the kernel finds them in memory
  std::vector<uint64_t> low, high;    // the allocations that they point into
  std::vector<unsigned> grid, block;
};

static bool grid_is_possible(const CUlaunchConfig* c, unsigned threads) {
  return c->gridDimX && c->gridDimY && c->gridDimZ && c->gridDimX <= 2147483647u && c->gridDimY <= 65535 &&
         c->gridDimZ <= 65535 && threads && threads <= 1024;
}

// Adds what the argument allows the kernel to touch.
static void admit(Launch& launch, size_t i, uint64_t address) {
  auto allocation = find_allocation(address);
  if (!allocation) return;
  auto* context = launch.function->module->context;
  if (allocation->device != HOST && allocation->device != context->device && !context->peers.count(allocation->device)) {
    violation("argument %zu of %s on device %d points into memory of device %d", i, launch.function->name.c_str(),
              context->device, allocation->device);
    return;
  }
  launch.low.push_back(allocation->base);
  launch.high.push_back(allocation->base + allocation->size);
}

static void run(const Launch& launch) {
  auto* translation = launch.function->module->translation;
  auto set_memory = (void (*)(int, const uint64_t*, const uint64_t*))dlsym(translation, "memory");
  auto get_fault = (const uint64_t* (*)())dlsym(translation, "fault");
  auto parameters = launch.parameters;
  set_memory((int)launch.low.size(), launch.low.data(), launch.high.data());
  launch.function->run((unsigned char*)parameters.data(), launch.grid.data(), launch.block.data());
  auto* fault = get_fault();
  if (fault[0])
    violation("%s: %lu bytes %s at %lx, misaligned or outside of its arguments' allocations",
              launch.function->name.c_str(), fault[2], fault[0] == 1 ? "read" : "written", fault[1]);
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** values, void**) {
  if (!settings().executes) return CUDA_SUCCESS;
  NEED_CONTEXT;
  STREAM(config->hStream);
  if (!is_loaded(function)) {
    violation("a launch of a function whose module was unloaded");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  auto* context = function->module->context;
  if (stream->context != context || current() != context) {
    violation("%s of device %d launched on a stream of device %d while device %d is current", function->name.c_str(),
              context->device, stream->context->device, current()->device);
    return CUDA_ERROR_INVALID_HANDLE;
  }
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  if (!grid_is_possible(config, threads)) {
    violation("a grid of %u x %u x %u blocks of %u threads", config->gridDimX, config->gridDimY, config->gridDimZ,
              threads);
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto launch = std::make_shared<Launch>();
  launch->function = function;
  launch->parameters.resize(function->parameter_bytes / 8 + 4);
  launch->low = launch->high = {0};  // never empty: no range would mean no check
  // A translation runs blocks from the fourth number to the fifth of the first axis.
  launch->grid = {config->gridDimX, config->gridDimY, config->gridDimZ, 0, config->gridDimX};
  launch->block = {config->blockDimX, config->blockDimY, config->blockDimZ};
  for (size_t i = 0; i < function->parameters.size(); i++) {
    auto [offset, size] = function->parameters[i];
    memcpy((char*)launch->parameters.data() + offset, values[i], size);
    if (size == 8) admit(*launch, i, *(const uint64_t*)values[i]);
  }
  event("{\"op\": \"launch\", \"kernel\": \"%s\", \"module\": \"%016lx\", \"grid\": [%u, %u, %u], \"threads\": %u, "
        "\"stream\": %llu, \"device\": %d, \"capturing\": %s}",
        function->name.c_str(), function->module->hash, config->gridDimX, config->gridDimY, config->gridDimZ, threads,
        stream->id, context->device, stream->capturing ? "true" : "false");
  if (!function->run) {
    violation("no translation of %s", function->name.c_str());
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  return enqueue(stream, [launch] {
    if (is_loaded(launch->function)) return run(*launch);
    violation("%s runs after its module was unloaded", launch->function->name.c_str());
  });
}
API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** values,
                            void** extra) {
  CUlaunchConfig config{};
  config.gridDimX = grid_x, config.gridDimY = grid_y, config.gridDimZ = grid_z;
  config.blockDimX = block_x, config.blockDimY = block_y, config.blockDimZ = block_z;
  config.sharedMemBytes = shared;
  config.hStream = stream;
  return cuLaunchKernelEx(&config, function, values, extra);
}
