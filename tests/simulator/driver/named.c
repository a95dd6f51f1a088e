// Functions that PyTorch and Triton look up when they start, and would miss. Nothing here calls them.
// In C, and without cuda.h, so that they need no signature.
extern void sim_missing(const char*);
#define NAMED(name)                                            \
  __attribute__((visibility("default"))) int name(void) {      \
    sim_missing(#name);                                        \
    return 801; /* CUDA_ERROR_NOT_SUPPORTED */                 \
  }
NAMED(cuCtxFromGreenCtx)
NAMED(cuDevResourceGenerateDesc)
NAMED(cuDevSmResourceSplitByCount)
NAMED(cuDeviceGetDevResource)
NAMED(cuGreenCtxCreate)
NAMED(cuGreenCtxDestroy)
NAMED(cuGreenCtxStreamCreate)
NAMED(cuLaunchCooperativeKernel)
NAMED(cuLinkAddData_v2)
NAMED(cuLinkComplete)
NAMED(cuLinkCreate_v2)
NAMED(cuLinkDestroy)
NAMED(cuMemAddressFree)
NAMED(cuMemAddressReserve)
NAMED(cuMemCreate)
NAMED(cuMemExportToShareableHandle)
NAMED(cuMemGetAllocationGranularity)
NAMED(cuMemGetAllocationPropertiesFromHandle)
NAMED(cuMemImportFromShareableHandle)
NAMED(cuMemMap)
NAMED(cuMemRelease)
NAMED(cuMemRetainAllocationHandle)
NAMED(cuMemSetAccess)
NAMED(cuMemUnmap)
NAMED(cuMulticastAddDevice)
NAMED(cuMulticastBindMem)
NAMED(cuMulticastCreate)
NAMED(cuMulticastUnbind)
NAMED(cuStreamBeginCaptureToGraph)
NAMED(cuStreamWriteValue32_v2)
NAMED(cuTensorMapEncodeIm2col)
NAMED(cuTensorMapEncodeTiled)

// PyTorch asks for the driver's messages, of which there are none.
__attribute__((visibility("default"))) int cuLogsRegisterCallback(void) { return 0; }
__attribute__((visibility("default"))) int cuLogsUnregisterCallback(void) { return 0; }
