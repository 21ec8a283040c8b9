// A CUDA driver without a card: it writes down what it is asked, checks contexts, and fails where it is told to.
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
typedef void* Handle;

static std::mutex guard;
static std::string record;
static std::map<std::string, int> failures, refused;
static bool silent = false;
static size_t argument_bytes = 0;
static thread_local std::vector<Handle> current;

EXPORT void fake_reset(int quiet) {
  record.clear();
  failures.clear();
  refused.clear();
  silent = quiet;
}
EXPORT void fake_forget() { record.clear(); }
EXPORT void fake_fail(const char* function, int code) { failures[function] = code; }
EXPORT void fake_refuse(const char* image, int code) { refused[image] = code; }
EXPORT void fake_argument_bytes(size_t count) { argument_bytes = count; }
EXPORT void fake_record(char* buffer, size_t size) { std::snprintf(buffer, size, "%s", record.c_str()); }
EXPORT size_t fake_depth() { return current.size(); }

template <class... T>
static int done(const char* function, const char* format, T... values) {
  if (silent) return 0;
  std::lock_guard<std::mutex> lock(guard);
  char line[400];
  std::snprintf(line, sizeof line, format, values...);
  record += std::string(function) + line + "\n";
  auto found = failures.find(function);
  return found == failures.end() ? 0 : found->second;
}
static Handle handle(size_t number) { return (Handle)number; }

EXPORT int cuInit(unsigned flags) { return done("cuInit", " %u", flags); }
EXPORT int cuDriverGetVersion(int* version) {
  *version = 12090;
  return done("cuDriverGetVersion", "");
}
struct Error {
  const char *name, *text;
};
static const std::map<int, Error> errors = {
    {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {716, {"CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"}},
};
EXPORT int cuGetErrorName(int code, const char** name) {
  *name = errors.count(code) ? errors.at(code).name : nullptr;
  return *name ? 0 : 1;
}
EXPORT int cuGetErrorString(int code, const char** text) {
  *text = errors.count(code) ? errors.at(code).text : nullptr;
  return *text ? 0 : 1;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return done("cuDeviceGet", " %d", ordinal);
}
EXPORT int cuDevicePrimaryCtxRetain(Handle* context, int device) {
  *context = handle(0x100 + device);
  return done("cuDevicePrimaryCtxRetain", " %d", device);
}
EXPORT int cuCtxPushCurrent_v2(Handle context) {
  int code = done("cuCtxPushCurrent", " %p", context);
  if (!code) current.push_back(context);
  return code;
}
EXPORT int cuCtxPopCurrent_v2(Handle* context) {
  if (current.empty()) return 201;
  *context = current.back();
  current.pop_back();
  return done("cuCtxPopCurrent", "");
}
static Handle context() { return current.empty() ? nullptr : current.back(); }
EXPORT int cuModuleLoadData(Handle* module, const char* image) {
  *module = handle(0x200);
  int code = done("cuModuleLoadData", " in %p: %.9s", context(), image);
  auto found = refused.find(image);
  return code || found == refused.end() ? code : found->second;
}
EXPORT int cuModuleUnload(Handle module) { return done("cuModuleUnload", " in %p: %p", context(), module); }
EXPORT int cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  *function = handle(0x300 + std::strlen(name));
  if (std::strcmp(name, "missing") == 0) return 500;
  return done("cuModuleGetFunction", " in %p: %p %s", context(), module, name);
}
EXPORT int cuFuncSetAttribute(Handle function, int attribute, int value) {
  return done("cuFuncSetAttribute", " in %p: %p %d %d", context(), function, attribute, value);
}
EXPORT int cuFuncLoad(Handle function) { return done("cuFuncLoad", " in %p: %p", context(), function); }
EXPORT int cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, Handle stream, void** parameters, void** extra) {
  if (silent) return 0;
  std::string bytes;
  for (size_t i = 0; i < argument_bytes; ++i) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", ((unsigned char*)parameters[0])[i]);
    bytes += two;
  }
  return done("cuLaunchKernel", " in %p: %p grid %u %u %u block %u %u %u shared %u stream %p extra %p bytes %s", context(),
              function, gx, gy, gz, bx, by, bz, shared, stream, (void*)extra, bytes.c_str());
}
