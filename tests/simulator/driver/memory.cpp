// Allocations with guard pages, questions about pointers, copies, fills.
#include "driver.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

constexpr size_t PAGE = 4096, ALIGNMENT = 256, POISONED_AT_MOST = 64 << 20;
constexpr unsigned char CANARY = 0xC5, POISON = 0xFF;  // a tensor of poison is NaN

static std::map<uintptr_t, Allocation> allocations;
static size_t used[64];

static size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

std::unique_ptr<Allocation> find_allocation(uintptr_t p) {
  LOCK;
  auto next = allocations.upper_bound(p);
  if (next == allocations.begin()) return nullptr;
  auto& found = std::prev(next)->second;
  return found.contains(p, 1) ? std::make_unique<Allocation>(found) : nullptr;
}

// Pages that nobody may touch stand before and behind. What alignment leaves at the end holds a canary.
static void* allocate(size_t size, int device) {
  size_t body = rounded(size, ALIGNMENT), mapped = rounded(body, PAGE) + 2 * PAGE;
  void* pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  char* mapping = (char*)pages;
  mprotect(mapping, PAGE, PROT_NONE);
  mprotect(mapping + mapped - PAGE, PAGE, PROT_NONE);
  char* p = mapping + mapped - PAGE - body;
  memset(p + size, CANARY, body - size);
  if (device != HOST && size <= POISONED_AT_MOST) memset(p, POISON, size);
  LOCK;
  allocations[(uintptr_t)p] = {(uintptr_t)p, size, device, mapping, mapped};
  return p;
}
static void release(uintptr_t p) {
  Allocation a = allocations[p];
  auto *end = (unsigned char*)p + a.size, *body_end = (unsigned char*)p + rounded(a.size, ALIGNMENT);
  if (std::any_of(end, body_end, [](unsigned char byte) { return byte != CANARY; }))
    violation("a write behind the end of an allocation of %zu bytes", a.size);
  munmap(a.mapping, a.mapped);
  allocations.erase(p);
}

// ---------------------------------------------------------------- a device's memory

API CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t size) {
  NEED_CONTEXT;
  NOT_WHILE_CAPTURING("cuMemAlloc");
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  LOCK;
  int device = current()->device;
  if (used[device] + size > settings().memory) return CUDA_ERROR_OUT_OF_MEMORY;
  *p = (CUdeviceptr)allocate(size, device);
  if (!*p) return CUDA_ERROR_OUT_OF_MEMORY;
  used[device] += size;
  event("{\"op\": \"allocate\", \"bytes\": %zu, \"device\": %d}", size, device);
  return CUDA_SUCCESS;
}
API CUresult cuMemFree_v2(CUdeviceptr p) {
  if (!p) return CUDA_SUCCESS;
  NOT_WHILE_CAPTURING("cuMemFree");
  LOCK;
  auto found = allocations.find(p);
  if (found == allocations.end() || found->second.device == HOST) return CUDA_ERROR_INVALID_VALUE;
  int device = found->second.device;
  finish(primary(device));  // as cuMemFree waits
  used[device] -= found->second.size;
  event("{\"op\": \"free\", \"bytes\": %zu, \"device\": %d}", found->second.size, device);
  release(p);
  return CUDA_SUCCESS;
}
API CUresult cuMemAllocAsync(CUdeviceptr* p, size_t size, CUstream) { return cuMemAlloc_v2(p, size); }
API CUresult cuMemFreeAsync(CUdeviceptr p, CUstream) { return cuMemFree_v2(p); }
API CUresult cuMemAllocManaged(CUdeviceptr* p, size_t size, unsigned) { return cuMemAlloc_v2(p, size); }
API CUresult cuMemGetInfo_v2(size_t* left, size_t* total) {
  NEED_CONTEXT;
  *total = settings().memory;
  *left = *total - used[current()->device];
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- pinned memory of the host

API CUresult cuMemHostAlloc(void** p, size_t size, unsigned) {
  NOT_WHILE_CAPTURING("cuMemHostAlloc");
  *p = allocate(size, HOST);
  return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemFreeHost(void* p) {
  LOCK;
  if (!allocations.count((uintptr_t)p)) return CUDA_ERROR_INVALID_VALUE;
  for (auto* context : all_contexts()) finish(context);
  release((uintptr_t)p);
  return CUDA_SUCCESS;
}
API CUresult cuMemHostRegister_v2(void* p, size_t size, unsigned) {
  LOCK;
  allocations[(uintptr_t)p] = {(uintptr_t)p, size, HOST, nullptr, 0};
  return CUDA_SUCCESS;
}
API CUresult cuMemHostUnregister(void* p) {
  LOCK;
  allocations.erase((uintptr_t)p);
  return CUDA_SUCCESS;
}
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_pointer, void* p, unsigned) {
  *device_pointer = (CUdeviceptr)p;
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- questions about pointers

API CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr p) {
  auto a = find_allocation(p);
  if (!a) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = a->base;
  if (size) *size = a->size;
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void* out, CUpointer_attribute which, CUdeviceptr p) {
  auto a = find_allocation(p);
  if (!a) return CUDA_ERROR_INVALID_VALUE;
  bool host = a->device == HOST;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext*)out = host ? current() : primary(a->device); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned*)out = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      if (!host && current() && a->device != current()->device && !current()->peers.count(a->device)) {
        violation("device %d is current, and is asked about memory of device %d", current()->device, a->device);
        return CUDA_ERROR_INVALID_VALUE;
      }
      *(CUdeviceptr*)out = p;
      break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (!host) return CUDA_ERROR_INVALID_VALUE;
      *(void**)out = (void*)p;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int*)out = host ? 0 : a->device; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(int*)out = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr*)out = a->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t*)out = a->size; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long*)out = a->base; break;
    default: sim_missing("cuPointerGetAttribute of another kind"); return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute* which, void** out, CUdeviceptr p) {
  for (unsigned i = 0; i < n; i++)
    if (cuPointerGetAttribute(out[i], which[i], p))
      memset(out[i], 0, which[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 4 : 8);
  return CUDA_SUCCESS;
}
API CUresult cuPointerSetAttribute(const void*, CUpointer_attribute, CUdeviceptr) { return CUDA_SUCCESS; }

// ---------------------------------------------------------------- copies and fills

static CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle, bool waits) {
  NEED_CONTEXT;
  STREAM(handle);
  if (!bytes) return CUDA_SUCCESS;
  if (stream->context != current())
    violation("a copy on a stream of device %d while device %d is current", stream->context->device,
              current()->device);
  auto target = find_allocation(to), source = find_allocation(from);  // null for pageable memory
  if ((target && !target->contains(to, bytes)) || (source && !source->contains(from, bytes))) {
    violation("a copy of %zu bytes beyond the end of an allocation", bytes);
    return CUDA_ERROR_INVALID_VALUE;
  }
  waits |= !target;
  if (waits) NOT_WHILE_CAPTURING("a copy that waits");
  event("{\"op\": \"copy\", \"bytes\": %zu, \"stream\": %llu, \"device\": %d, \"waits\": %s}", bytes, stream->id,
        stream->context->device, waits ? "true" : "false");
  Work work = [=] { memmove((void*)to, (const void*)from, bytes); };
  if (!source && !stream->capturing) {  // pageable memory is staged before the call returns
    auto staged = std::make_shared<std::string>((const char*)from, bytes);
    work = [=] { memcpy((void*)to, staged->data(), bytes); };
  }
  if (auto error = enqueue(stream, work)) return error;
  if (waits) finish(stream);
  return CUDA_SUCCESS;
}
API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t n) {
  return copy(to, (CUdeviceptr)from, n, nullptr, true);
}
API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t n) {
  return copy((CUdeviceptr)to, from, n, nullptr, true);
}
API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
  return copy(to, from, n, nullptr, false);
}
API CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) { return copy(to, from, n, nullptr, true); }
API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t n, CUstream s) {
  return copy(to, (CUdeviceptr)from, n, s, false);
}
API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t n, CUstream s) {
  return copy((CUdeviceptr)to, from, n, s, false);
}
API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  return copy(to, from, n, s, false);
}
API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  return copy(to, from, n, s, false);
}
API CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t n, CUstream s) {
  return copy(to, from, n, s, false);
}

template <class T>
static CUresult fill(CUdeviceptr p, T value, size_t n, CUstream handle) {
  NEED_CONTEXT;
  STREAM(handle);
  auto a = find_allocation(p);
  if (!a || !a->contains(p, n * sizeof(T))) return CUDA_ERROR_INVALID_VALUE;
  event("{\"op\": \"fill\", \"bytes\": %zu, \"stream\": %llu, \"device\": %d}", n * sizeof(T), stream->id,
        stream->context->device);
  return enqueue(stream, [=] { std::fill_n((T*)p, n, value); });
}
API CUresult cuMemsetD8_v2(CUdeviceptr p, unsigned char value, size_t n) { return fill(p, value, n, nullptr); }
API CUresult cuMemsetD32_v2(CUdeviceptr p, unsigned value, size_t n) { return fill(p, value, n, nullptr); }
API CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char value, size_t n, CUstream s) {
  return fill(p, value, n, s);
}
API CUresult cuMemsetD32Async(CUdeviceptr p, unsigned value, size_t n, CUstream s) { return fill(p, value, n, s); }
