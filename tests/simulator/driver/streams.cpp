// Streams, what waits for what, events.
#include "driver.h"

#include <atomic>
#include <ctime>

std::set<CUstream_st*> all_streams;
static std::atomic<unsigned long long> next_id{1};
static std::atomic<bool> deferred{false};

CUstream_st* new_stream(CUctx_st* context, unsigned flags, int priority) {
  LOCK;
  auto* stream = new CUstream_st;
  stream->context = context;
  stream->id = next_id++;
  stream->flags = flags;
  stream->priority = priority;
  context->streams.insert(stream);
  all_streams.insert(stream);
  return stream;
}
CUstream_st* stream_of(CUstream handle) {
  if (!handle || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD)
    return current() ? current()->legacy : nullptr;
  LOCK;
  return all_streams.count(handle) ? handle : nullptr;
}

// ---------------------------------------------------------------- work, in order

// While deferred, work runs only when somebody waits for it.
API void sim_defer(int on) { deferred = on != 0; }

void finish(CUstream_st* stream, uint64_t ticket) {
  LOCK;
  while (stream->done < ticket && !stream->queue.empty()) {
    Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
    stream->done++;
  }
}
void finish(CUstream_st* stream) { finish(stream, stream->enqueued); }
void finish(CUctx_st* context) {
  LOCK;
  for (auto* stream : context->streams) finish(stream);
}

static void push(CUstream_st* stream, Work work) {
  stream->queue.push_back(std::move(work));
  stream->enqueued++;
}
// What is enqueued on `stream` from now on runs after the other one's work up to `ticket`.
static void wait_for(CUstream_st* stream, CUstream_st* other, uint64_t ticket) {
  if (other != stream && other->done < ticket) push(stream, [=] { finish(other, ticket); });
}
// The legacy stream and a blocking stream wait for each other.
static bool wait_for_each_other(const CUstream_st* one, const CUstream_st* other) {
  const CUstream_st* legacy = one->context->legacy;
  auto blocking = [](const CUstream_st* stream) { return !(stream->flags & CU_STREAM_NON_BLOCKING); };
  return one != other && ((one == legacy && blocking(other)) || (other == legacy && blocking(one)));
}
CUresult enqueue(CUstream_st* stream, Work work) {
  LOCK;
  if (stream->capturing) {
    stream->capturing->nodes.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  for (auto* other : stream->context->streams) {
    if (!wait_for_each_other(stream, other)) continue;
    if (other->capturing) {
      violation("work on the legacy stream while a blocking stream captures");
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    wait_for(stream, other, other->enqueued);
  }
  push(stream, std::move(work));
  if (!deferred) finish(stream);
  return CUDA_SUCCESS;
}
API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  STREAM(handle);
  return enqueue(stream, [=] { function(data); });
}
API CUresult cuStreamAddCallback(CUstream handle, CUstreamCallback function, void* data, unsigned) {
  STREAM(handle);
  return enqueue(stream, [=] { function(handle, CUDA_SUCCESS, data); });
}
// For the bridge, which runs an operator of PyTorch's itself: what the stream waits for is done afterwards.
API CUresult sim_operator(CUstream handle, const char* name) {
  STREAM(handle);
  event("{\"op\": \"operator\", \"name\": \"%s\", \"stream\": %llu, \"device\": %d}", name, stream->id,
        stream->context->device);
  finish(stream);
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- streams

API CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  NEED_CONTEXT;
  *stream = new_stream(current(), flags, priority);
  return CUDA_SUCCESS;
}
API CUresult cuStreamCreate(CUstream* stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
API CUresult cuStreamDestroy_v2(CUstream stream) {
  LOCK;
  if (!all_streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
  finish(stream);
  stream->context->streams.erase(stream);
  all_streams.erase(stream);
  return CUDA_SUCCESS;  // leaked, since an event may name it
}
API CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  STREAM(handle);
  *priority = stream->priority;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  STREAM(handle);
  *flags = stream->flags;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  STREAM(handle);
  *context = stream->context;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  STREAM(handle);
  *id = stream->id;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  STREAM(handle);
  *device = stream->context->device;
  return CUDA_SUCCESS;
}
API CUresult cuStreamSynchronize(CUstream handle) {
  STREAM(handle);
  NOT_WHILE_CAPTURING("cuStreamSynchronize");
  finish(stream);
  event("{\"op\": \"synchronize\", \"stream\": %llu}", stream->id);
  return CUDA_SUCCESS;
}
API CUresult cuStreamQuery(CUstream handle) {
  STREAM(handle);
  NOT_WHILE_CAPTURING("cuStreamQuery");
  if (stream->done == stream->enqueued) return CUDA_SUCCESS;
  finish(stream);  // so that it is ready the next time
  return CUDA_ERROR_NOT_READY;
}

// ---------------------------------------------------------------- events

API CUresult cuEventCreate(CUevent* created, unsigned) {
  NEED_CONTEXT;
  *created = new CUevent_st;
  (*created)->context = current();
  return CUDA_SUCCESS;
}
API CUresult cuEventDestroy_v2(CUevent destroyed) {
  delete destroyed;
  return CUDA_SUCCESS;
}
API CUresult cuEventRecordWithFlags(CUevent recorded, CUstream handle, unsigned) {
  STREAM(handle);
  if (stream->context != recorded->context) {
    violation("an event of device %d recorded on a stream of device %d", recorded->context->device,
              stream->context->device);
    return CUDA_ERROR_INVALID_HANDLE;
  }
  LOCK;
  recorded->captured = stream->capturing;
  if (stream->capturing) return CUDA_SUCCESS;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  recorded->milliseconds = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  recorded->stream = stream;
  recorded->ticket = stream->enqueued;
  recorded->queries = 0;
  return CUDA_SUCCESS;
}
API CUresult cuEventRecord(CUevent recorded, CUstream stream) { return cuEventRecordWithFlags(recorded, stream, 0); }

static void join_capture(CUstream_st* stream, CUgraph_st* graph) {
  if (stream->capturing) return;
  stream->capturing = graph;
  for (auto* origin : all_streams)
    if (origin->began_capture && origin->capturing == graph) {
      stream->capture_id = origin->capture_id;
      stream->mode = origin->mode;
    }
}
API CUresult cuStreamWaitEvent(CUstream handle, CUevent awaited, unsigned) {
  STREAM(handle);
  LOCK;
  if (awaited->captured) {
    join_capture(stream, awaited->captured);
    return CUDA_SUCCESS;
  }
  if (!awaited->stream) return CUDA_SUCCESS;  // never recorded
  if (stream->capturing) {
    violation("a capturing stream waits for an event from outside of the capture");
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  wait_for(stream, awaited->stream, awaited->ticket);
  return CUDA_SUCCESS;
}
API CUresult cuEventSynchronize(CUevent awaited) {
  NOT_WHILE_CAPTURING("cuEventSynchronize");
  if (awaited->stream) finish(awaited->stream, awaited->ticket);
  event("{\"op\": \"synchronize\", \"event\": true}");
  return CUDA_SUCCESS;
}
API CUresult cuEventQuery(CUevent asked) {
  NOT_WHILE_CAPTURING("cuEventQuery");
  if (!asked->stream || asked->stream->done >= asked->ticket) return CUDA_SUCCESS;
  if (asked->queries++ < 2) return CUDA_ERROR_NOT_READY;
  finish(asked->stream, asked->ticket);  // who polls doesn't poll for ever
  return CUDA_SUCCESS;
}
API CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  *milliseconds = (float)(end->milliseconds - start->milliseconds);
  return CUDA_SUCCESS;
}
