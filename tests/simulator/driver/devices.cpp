// Devices, their attributes, contexts, errors by name.
#include "driver.h"

#include <cstdio>
#include <cstring>

static std::vector<std::unique_ptr<CUctx_st>> primaries(64);
static thread_local std::vector<CUctx_st*> stack;

bool is_device(int device) { return device >= 0 && device < settings().devices; }
CUctx_st* current() { return stack.empty() ? nullptr : stack.back(); }
CUctx_st* primary(int device) {
  LOCK;
  auto& context = primaries[device];
  if (!context) {
    context = std::make_unique<CUctx_st>();
    context->device = device;
    context->legacy = new_stream(context.get(), 0, 0);
  }
  return context.get();
}
std::vector<CUctx_st*> all_contexts() {
  LOCK;
  std::vector<CUctx_st*> result;
  for (auto& context : primaries)
    if (context) result.push_back(context.get());
  return result;
}

#define NEED_DEVICE(device) \
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE

// ---------------------------------------------------------------- devices

API CUresult cuInit(unsigned) { return settings().devices > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
API CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int* count) {
  *count = settings().devices;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  NEED_DEVICE(ordinal);
  *device = ordinal;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  NEED_DEVICE(device);
  snprintf(name, length, "simulated GPU %d", device);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  NEED_DEVICE(device);
  memset(uuid, 0, sizeof *uuid);
  memcpy(uuid->bytes, "simulated", 9);
  uuid->bytes[15] = (char)device;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  NEED_DEVICE(device);
  *bytes = settings().memory;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
  NEED_DEVICE(device);
  snprintf(text, length, "0000:%02X:00.0", device + 1);
  return CUDA_SUCCESS;
}

// An H100's, where no setting says otherwise.
static int attribute(CUdevice_attribute which, int device) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return multiprocessors(device);
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return settings().threads_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return settings().capability / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return settings().capability % 10;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return device + 1;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 232448;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 233472;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 52428800;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
    default: return 0;
  }
}
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  NEED_DEVICE(device);
  *value = attribute(which, device);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  NEED_DEVICE(device);
  NEED_DEVICE(peer);
  *can = settings().peers && device != peer;
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- contexts

API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  NEED_DEVICE(device);
  *context = primary(device);
  (*context)->retained++;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  NEED_DEVICE(device);
  primary(device)->retained--;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  NEED_DEVICE(device);
  LOCK;
  auto* context = primaries[device].get();  // asking makes none
  *active = context && context->retained > 0;
  *flags = context ? context->flags : 0;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  NEED_DEVICE(device);
  primary(device)->flags = flags;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current();
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext context) {
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return CUDA_SUCCESS;
}
API CUresult cuCtxPushCurrent_v2(CUcontext context) {
  stack.push_back(context);
  return CUDA_SUCCESS;
}
API CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  NEED_CONTEXT;
  if (context) *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) {
  NEED_CONTEXT;
  *device = current()->device;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetFlags(unsigned* flags) {
  NEED_CONTEXT;
  *flags = current()->flags;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  NEED_CONTEXT;
  auto& limits = current()->limits;
  *value = limits.count(limit) ? limits[limit] : 1 << 20;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  NEED_CONTEXT;
  current()->limits[limit] = value;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSynchronize() {
  NEED_CONTEXT;
  NOT_WHILE_CAPTURING("cuCtxSynchronize");
  finish(current());
  event("{\"op\": \"synchronize\", \"device\": %d}", current()->device);
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return CUDA_SUCCESS;
}
API CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned) {
  NEED_CONTEXT;
  if (!settings().peers) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  if (!current()->peers.insert(peer->device).second) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- errors

static const struct {
  CUresult code;
  const char *name, *text;
} ERRORS[] = {
#define ROW(code, text) {code, #code, text}
    ROW(CUDA_SUCCESS, "no error"),
    ROW(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ROW(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ROW(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ROW(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ROW(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ROW(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ROW(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ROW(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"),
    ROW(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices"),
    ROW(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ROW(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ROW(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ROW(CUDA_ERROR_NOT_READY, "device not ready"),
    ROW(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ROW(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ROW(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ROW(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ROW(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        "operation would make the legacy stream depend on a capturing blocking stream"),
#undef ROW
};
API CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = "an error that the simulated driver has no text for";
  for (auto& row : ERRORS)
    if (row.code == code) *text = row.text;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult code, const char** name) {
  *name = "CUDA_ERROR_UNKNOWN";
  for (auto& row : ERRORS)
    if (row.code == code) *name = row.name;
  return CUDA_SUCCESS;
}
