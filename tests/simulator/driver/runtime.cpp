// The part of the CUDA runtime that PyTorch imports, on top of the simulated driver. Documented functions only.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#define API extern "C" __attribute__((visibility("default")))

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int chosen_device = 0;

// What every function returns: cudaGetLastError gives it once more.
cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}
// The driver's error numbers are the runtime's, for all that occur here.
static cudaError_t done(CUresult result) { return done((cudaError_t)result); }
static CUresult ensure_context() {
  CUcontext context;
  cuCtxGetCurrent(&context);
  if (context) return CUDA_SUCCESS;
  if (auto error = cuDevicePrimaryCtxRetain(&context, chosen_device)) return error;
  return cuCtxSetCurrent(context);
}
#define IN_CONTEXT(call)                                \
  {                                                     \
    if (auto error = ensure_context()) return done(error); \
    return done(call);                                  \
  }

// ---------------------------------------------------------------- devices

API cudaError_t cudaGetDeviceCount(int* count) { return done(cuDeviceGetCount(count)); }
API cudaError_t cudaGetDevice(int* device) {
  CUcontext context;
  cuCtxGetCurrent(&context);
  if (context) return done(cuCtxGetDevice(device));
  *device = chosen_device;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int ordinal) {
  CUcontext context;
  if (auto error = cuDevicePrimaryCtxRetain(&context, ordinal)) return done(error);
  chosen_device = ordinal;
  return done(cuCtxSetCurrent(context));
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return done(cuDeviceGetAttribute(value, (CUdevice_attribute)which, device));
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  memset(p, 0, sizeof *p);
  if (auto error = cuDeviceGetName(p->name, sizeof p->name, device)) return done(error);
  cuDeviceGetUuid((CUuuid*)&p->uuid, device);
  cuDeviceTotalMem(&p->totalGlobalMem, device);
  auto get = [device](CUdevice_attribute which) {
    int value = 0;
    cuDeviceGetAttribute(&value, which, device);
    return value;
  };
  p->major = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  p->minor = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  p->multiProcessorCount = get(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  p->maxThreadsPerMultiProcessor = get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  p->maxBlocksPerMultiProcessor = get(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR);
  p->maxThreadsPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  p->maxThreadsDim[0] = get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X);
  p->maxThreadsDim[1] = get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y);
  p->maxThreadsDim[2] = get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z);
  p->maxGridSize[0] = get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X);
  p->maxGridSize[1] = get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y);
  p->maxGridSize[2] = get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z);
  p->warpSize = get(CU_DEVICE_ATTRIBUTE_WARP_SIZE);
  p->regsPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK);
  p->regsPerMultiprocessor = get(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
  p->sharedMemPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
  p->sharedMemPerBlockOptin = get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  p->sharedMemPerMultiprocessor = get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  p->reservedSharedMemPerBlock = get(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
  p->totalConstMem = get(CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY);
  p->memPitch = get(CU_DEVICE_ATTRIBUTE_MAX_PITCH);
  p->textureAlignment = get(CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT);
  p->l2CacheSize = get(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  p->memoryBusWidth = get(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
  p->asyncEngineCount = get(CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
  p->pciBusID = get(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
  p->cooperativeLaunch = p->streamPrioritiesSupported = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int n, int device) { return done(cuDeviceGetPCIBusId(text, n, device)); }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return done(cuDeviceCanAccessPeer(can, device, peer));
}
API cudaError_t cudaDeviceEnablePeerAccess(int device, unsigned flags) {
  CUcontext context;
  if (auto error = cuDevicePrimaryCtxRetain(&context, device)) return done(error);
  IN_CONTEXT(cuCtxEnablePeerAccess(context, flags));
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return done(cuCtxGetStreamPriorityRange(least, greatest));
}
API cudaError_t cudaDeviceSynchronize() IN_CONTEXT(cuCtxSynchronize())
API cudaError_t cudaDriverGetVersion(int* version) { return done(cuDriverGetVersion(version)); }
API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaGetLastError() {
  auto error = last_error;
  last_error = cudaSuccess;
  return error;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(cudaError_t error) {
  const char* text = "";
  cuGetErrorString((CUresult)error, &text);
  return text;
}
API const char* cudaGetErrorName(cudaError_t error) {
  const char* name = "";
  cuGetErrorName((CUresult)error, &name);
  return name;
}
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                                 unsigned long long flags, cudaDriverEntryPointQueryResult* status) {
  CUdriverProcAddressQueryResult found;
  bool missing = cuGetProcAddress(name, function, (int)version, flags, &found);
  if (status) *status = missing ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---------------------------------------------------------------- memory

API cudaError_t cudaMalloc(void** p, size_t n) {
  *p = nullptr;
  if (!n) return cudaSuccess;
  IN_CONTEXT(cuMemAlloc((CUdeviceptr*)p, n));
}
API cudaError_t cudaFree(void* p) IN_CONTEXT(cuMemFree((CUdeviceptr)p))
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) IN_CONTEXT(cuMemAllocAsync((CUdeviceptr*)p, n, s))
API cudaError_t cudaFreeAsync(void* p, cudaStream_t s) IN_CONTEXT(cuMemFreeAsync((CUdeviceptr)p, s))
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned flags) IN_CONTEXT(cuMemHostAlloc(p, n, flags))
API cudaError_t cudaFreeHost(void* p) IN_CONTEXT(cuMemFreeHost(p))
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned flags) IN_CONTEXT(cuMemHostRegister(p, n, flags))
API cudaError_t cudaHostUnregister(void* p) IN_CONTEXT(cuMemHostUnregister(p))
API cudaError_t cudaMemGetInfo(size_t* left, size_t* total) IN_CONTEXT(cuMemGetInfo(left, total))
API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind)
    IN_CONTEXT(cuMemcpy((CUdeviceptr)to, (CUdeviceptr)from, n))
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t s)
    IN_CONTEXT(cuMemcpyAsync((CUdeviceptr)to, (CUdeviceptr)from, n, s))
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t s)
    IN_CONTEXT(cuMemcpyAsync((CUdeviceptr)to, (CUdeviceptr)from, n, s))
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                  size_t height, cudaMemcpyKind kind, cudaStream_t s) {
  for (size_t row = 0; row < height; row++)
    if (auto error = cudaMemcpyAsync((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width, kind, s))
      return error;
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* p, int value, size_t n)
    IN_CONTEXT(cuMemsetD8((CUdeviceptr)p, (unsigned char)value, n))
API cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s)
    IN_CONTEXT(cuMemsetD8Async((CUdeviceptr)p, (unsigned char)value, n, s))
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  memset(attributes, 0, sizeof *attributes);
  attributes->device = -2;  // of memory that isn't CUDA's
  unsigned type;
  if (cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)p)) return cudaSuccess;
  cuPointerGetAttribute(&attributes->device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, (CUdeviceptr)p);
  bool host = type == CU_MEMORYTYPE_HOST;
  attributes->type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->devicePointer = (void*)p;
  attributes->hostPointer = host ? (void*)p : nullptr;
  return cudaSuccess;
}

// ---------------------------------------------------------------- streams, events, graphs

API cudaError_t cudaStreamCreate(cudaStream_t* s) IN_CONTEXT(cuStreamCreate(s, 0))
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) IN_CONTEXT(cuStreamCreate(s, flags))
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority)
    IN_CONTEXT(cuStreamCreateWithPriority(s, flags, priority))
API cudaError_t cudaStreamDestroy(cudaStream_t s) IN_CONTEXT(cuStreamDestroy(s))
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int* priority) IN_CONTEXT(cuStreamGetPriority(s, priority))
API cudaError_t cudaStreamSynchronize(cudaStream_t s) IN_CONTEXT(cuStreamSynchronize(s))
API cudaError_t cudaStreamQuery(cudaStream_t s) IN_CONTEXT(cuStreamQuery(s))
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
    IN_CONTEXT(cuStreamWaitEvent(s, e, flags))
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t function, void* data, unsigned flags)
    IN_CONTEXT(cuStreamAddCallback(s, (CUstreamCallback)function, data, flags))
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void* data)
    IN_CONTEXT(cuLaunchHostFunc(s, function, data))
API cudaError_t cudaEventCreate(cudaEvent_t* e) IN_CONTEXT(cuEventCreate(e, 0))
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) IN_CONTEXT(cuEventCreate(e, flags))
API cudaError_t cudaEventDestroy(cudaEvent_t e) IN_CONTEXT(cuEventDestroy(e))
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) IN_CONTEXT(cuEventRecord(e, s))
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags)
    IN_CONTEXT(cuEventRecordWithFlags(e, s, flags))
API cudaError_t cudaEventSynchronize(cudaEvent_t e) IN_CONTEXT(cuEventSynchronize(e))
API cudaError_t cudaEventQuery(cudaEvent_t e) IN_CONTEXT(cuEventQuery(e))
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end)
    IN_CONTEXT(cuEventElapsedTime(milliseconds, start, end))
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
    IN_CONTEXT(cuStreamBeginCapture(s, (CUstreamCaptureMode)mode))
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) IN_CONTEXT(cuStreamEndCapture(s, graph))
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status)
    IN_CONTEXT(cuStreamIsCapturing(s, (CUstreamCaptureStatus*)status))
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                         const cudaGraphEdgeData** edges, size_t* n)
    IN_CONTEXT(cuStreamGetCaptureInfo(s, (CUstreamCaptureStatus*)status, (cuuint64_t*)id, graph, dependencies,
                                      (const CUgraphEdgeData**)edges, n))
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return done(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode*)mode));
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags)
    IN_CONTEXT(cuGraphInstantiateWithFlags(executable, graph, flags))
API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t s) IN_CONTEXT(cuGraphLaunch(graph, s))
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) IN_CONTEXT(cuGraphDestroy(graph))
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) IN_CONTEXT(cuGraphExecDestroy(graph))
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* n)
    IN_CONTEXT(cuGraphGetNodes(graph, nodes, n))
// PyTorch ties a counter to each graph by a user object. Here it is never released.
API cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* data, cudaHostFn_t, unsigned, unsigned) {
  *object = (cudaUserObject_t)data;
  return cudaSuccess;
}
API cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }
API cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
