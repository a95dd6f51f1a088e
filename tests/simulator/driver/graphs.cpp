// Stream capture, what it forbids, graphs.
#include "driver.h"

#include <atomic>

static std::atomic<unsigned long long> next_capture_id{1};
static int global_captures = 0;  // in mode global, by any thread
static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static thread_local int thread_captures = 0;  // in mode global or thread-local, by this thread

CUresult check_capture_allows(const char* function) {
  LOCK;
  bool forbidden = (thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && global_captures > 0) ||
                   (thread_mode != CU_STREAM_CAPTURE_MODE_RELAXED && thread_captures > 0);
  if (!forbidden) return CUDA_SUCCESS;
  for (auto* stream : all_streams)
    if (stream->capturing) stream->capturing->invalid = true;
  violation("%s while a stream captures: the capture is invalid", function);
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}
static void count_capture(CUstreamCaptureMode mode, int change) {
  if (mode == CU_STREAM_CAPTURE_MODE_GLOBAL) global_captures += change;
  if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) thread_captures += change;
}
API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  NEED_CONTEXT;
  STREAM(handle);
  LOCK;
  if (stream == stream->context->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capturing = new CUgraph_st;
  stream->began_capture = true;
  stream->mode = mode;
  stream->capture_id = next_capture_id++;
  count_capture(mode, 1);
  event("{\"op\": \"begin capture\", \"stream\": %llu, \"mode\": %d}", stream->id, (int)mode);
  return CUDA_SUCCESS;
}
API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  STREAM(handle);
  LOCK;
  *out = nullptr;
  if (!stream->capturing || !stream->began_capture) return CUDA_ERROR_ILLEGAL_STATE;
  auto* graph = stream->capturing;
  count_capture(stream->mode, -1);
  for (auto* other : all_streams)
    if (other->capturing == graph) {
      other->capturing = nullptr;
      other->began_capture = false;
    }
  event("{\"op\": \"end capture\", \"stream\": %llu, \"nodes\": %zu}", stream->id, graph->nodes.size());
  if (graph->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *out = graph;
  return CUDA_SUCCESS;
}
API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  STREAM(handle);
  *status = !stream->capturing            ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capturing->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                          : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                       const CUgraphNode** dependencies, const CUgraphEdgeData** edges, size_t* n) {
  STREAM(handle);
  if (auto error = cuStreamIsCapturing(handle, status)) return error;
  if (id) *id = stream->capture_id;
  if (graph) *graph = stream->capturing;
  if (dependencies) *dependencies = nullptr;  // a graph here is a list
  if (edges) *edges = nullptr;
  if (n) *n = 0;
  return CUDA_SUCCESS;
}

API CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes};
  return CUDA_SUCCESS;
}
API CUresult cuGraphLaunch(CUgraphExec graph, CUstream handle) {
  STREAM(handle);
  event("{\"op\": \"graph\", \"nodes\": %zu, \"stream\": %llu, \"device\": %d}", graph->nodes.size(), stream->id,
        stream->context->device);
  for (auto& work : graph->nodes)
    if (auto error = enqueue(stream, work)) return error;
  return CUDA_SUCCESS;
}
API CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode*, size_t* n) {
  *n = graph->nodes.size();
  return CUDA_SUCCESS;
}
API CUresult cuGraphDestroy(CUgraph graph) {
  delete graph;
  return CUDA_SUCCESS;
}
API CUresult cuGraphExecDestroy(CUgraphExec graph) {
  for (auto* context : all_contexts()) finish(context);
  delete graph;
  return CUDA_SUCCESS;
}
