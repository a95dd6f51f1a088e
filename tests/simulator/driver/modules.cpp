// Modules: images loaded, functions found in them, unloading.
#include "modules.h"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static std::set<CUfunction> loaded;

bool is_loaded(CUfunction function) {
  LOCK;
  return loaded.count(function) != 0;
}

// ---------------------------------------------------------------- images: the ELF files that ptxas writes

static size_t image_size(const void* image) {
  auto* header = (const Elf64_Ehdr*)image;
  auto* sections = (const Elf64_Shdr*)((const char*)image + header->e_shoff);
  size_t end = std::max<size_t>(header->e_shoff + (size_t)header->e_shnum * header->e_shentsize,
                                header->e_phoff + (size_t)header->e_phnum * header->e_phentsize);
  for (int i = 0; i < header->e_shnum; i++)
    if (sections[i].sh_type != SHT_NOBITS) end = std::max<size_t>(end, sections[i].sh_offset + sections[i].sh_size);
  return end;
}

// FNV-1a. By it the bridge names the translation of an image.
API uint64_t sim_hash(const void* image) {
  uint64_t hash = 14695981039346656037ull;
  for (size_t i = 0, n = image_size(image); i < n; i++) hash = (hash ^ ((const unsigned char*)image)[i]) * 1099511628211ull;
  return hash;
}

// A kernel's parameters stand in .nv.info.<name>: of the attributes there, EIATTR_KPARAM_INFO (0x17).
static std::vector<Parameter> parameters_in(const unsigned char* at, const unsigned char* end) {
  constexpr unsigned WITH_SIZE = 4, KPARAM_INFO = 0x17;
  std::vector<Parameter> result;
  while (at + 4 <= end) {
    unsigned format = at[0], attribute = at[1];
    uint16_t size;
    memcpy(&size, at + 2, 2);
    at += 4;
    if (format != WITH_SIZE) continue;  // the two bytes were its value
    if (attribute == KPARAM_INFO && size >= 12) {
      uint16_t ordinal, offset;
      uint32_t packed;
      memcpy(&ordinal, at + 4, 2);
      memcpy(&offset, at + 6, 2);
      memcpy(&packed, at + 8, 4);
      if (result.size() <= ordinal) result.resize(ordinal + 1);
      result[ordinal] = {offset, packed >> 18};
    }
    at += size;
  }
  return result;
}

static std::unique_ptr<CUfunc_st> function_in(CUmod_st* module, const std::string& name) {
  const char* image = module->image.data();
  auto* header = (const Elf64_Ehdr*)image;
  auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* names = image + sections[header->e_shstrndx].sh_offset;
  auto function = std::make_unique<CUfunc_st>();
  bool found = false;
  for (int i = 0; i < header->e_shnum; i++) {
    std::string section = names + sections[i].sh_name;
    auto* start = (const unsigned char*)image + sections[i].sh_offset;
    if (section == ".text." + name) found = true;
    if (section == ".nv.info." + name) function->parameters = parameters_in(start, start + sections[i].sh_size);
  }
  if (!found) return nullptr;
  function->module = module;
  function->name = name;
  for (auto& p : function->parameters) function->parameter_bytes = std::max(function->parameter_bytes, p.offset + p.size);
  if (module->translation)
    function->run = (decltype(function->run))dlsym(module->translation, ("launch_" + name).c_str());
  return function;
}

// ---------------------------------------------------------------- modules

API CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  NEED_CONTEXT;
  NOT_WHILE_CAPTURING("cuModuleLoadData");
  if (memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
  auto* module = new CUmod_st;
  module->context = current();
  module->image.assign((const char*)image, image_size(image));
  module->hash = sim_hash(image);
  char path[4096];
  snprintf(path, sizeof path, "%s/%016lx.so", getenv("SIMULATOR_KERNELS"), module->hash);
  module->translation = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  event("{\"op\": \"load\", \"module\": \"%016lx\", \"device\": %d}", module->hash, module->context->device);
  *out = module;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}
API CUresult cuModuleLoad(CUmodule* module, const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  std::string image;
  char part[65536];
  while (size_t n = fread(part, 1, sizeof part, file)) image.append(part, n);
  fclose(file);
  return cuModuleLoadData(module, image.data());
}
API CUresult cuModuleUnload(CUmodule module) {
  finish(module->context);
  LOCK;
  event("{\"op\": \"unload\", \"module\": \"%016lx\", \"device\": %d}", module->hash, module->context->device);
  for (auto& [name, function] : module->functions) loaded.erase(function.get());
  return CUDA_SUCCESS;  // leaked, so that no later function has the address of an unloaded one
}
API CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  LOCK;
  auto& function = module->functions[name];
  if (!function) function = function_in(module, name);
  if (!function) return CUDA_ERROR_NOT_FOUND;
  *out = function.get();
  loaded.insert(*out);
  return CUDA_SUCCESS;
}

// ---------------------------------------------------------------- questions about functions

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = settings().capability; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API CUresult cuFuncGetName(const char** name, CUfunction function) {
  *name = function->name.c_str();
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetModule(CUmodule* module, CUfunction function) {
  *module = function->module;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetParamInfo(CUfunction function, size_t i, size_t* offset, size_t* size) {
  if (i >= function->parameters.size()) return CUDA_ERROR_INVALID_VALUE;
  if (offset) *offset = function->parameters[i].offset;
  if (size) *size = function->parameters[i].size;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int threads, size_t) {
  *n = settings().threads_per_multiprocessor / threads;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, CUfunction function, int threads,
                                                                  size_t shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(n, function, threads, shared);
}
API CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) {
  *n = 1;
  return CUDA_SUCCESS;
}
