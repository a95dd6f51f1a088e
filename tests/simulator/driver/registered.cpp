// PyTorch's own kernels, which register themselves as its libraries load. They are machine code, which nobody
// here executes: a launch of one is a violation that names it, unless no kernel is executed at all.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))
extern "C" void sim_violation(const char*);
extern "C" int sim_executes();
cudaError_t done(cudaError_t);  // of runtime.cpp

static std::mutex names_mutex;
static std::map<const void*, std::string>& names() {
  static auto* all = new std::map<const void*, std::string>;  // outlives other libraries' destructors
  return *all;
}

API void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                int*) {
  std::lock_guard<std::mutex> lock(names_mutex);
  names()[host] = name;
}

// nvcc's launches push their configuration, and pop it in the function that stands for the kernel.
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
static thread_local Configuration pushed;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *(cudaStream_t*)stream = pushed.stream;
  return cudaSuccess;
}

static cudaError_t refuse(const void* host) {
  if (!sim_executes()) return cudaSuccess;
  std::lock_guard<std::mutex> lock(names_mutex);
  auto found = names().find(host);
  sim_violation(("a kernel of PyTorch's own: " + (found == names().end() ? "?" : found->second)).c_str());
  return done(cudaErrorNoKernelImageForDevice);
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse((const void*)kernel);
}
API cudaError_t cudaLaunchKernel(const void* host, dim3, dim3, void**, size_t, cudaStream_t) { return refuse(host); }
API cudaError_t cudaLaunchCooperativeKernel(const void* host, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse(host);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* host, void**) { return refuse(host); }

API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int threads, size_t) {
  *n = 2048 / threads;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int threads, size_t,
                                                                       unsigned) {
  *n = 2048 / threads;
  return cudaSuccess;
}
