// Calls entries (entries.h) as runner.py asks for them on standard input, until that ends. A fault
// in a kernel ends the process, with the report on standard error.
//
// Request: name, schedule, seed, then each argument: its kind and an int64, a double, or a buffer
// as offset (by which its device memory is misaligned), size and bytes. Answer: status, launches so
// far, then the bytes of all buffers.
#include <cstdio>
#include <vector>

#include "device_memory.h"
#include "entries.h"
#if !defined(__CUDACC__)
#include "runtime.h"
#endif

namespace {

struct Buffer {
  uint8_t* memory;
  size_t offset;
  size_t bytes;
};

// False at the end of the input.
bool read_bytes(void* to, size_t bytes) {
  return bytes == 0 || std::fread(to, 1, bytes, stdin) == bytes;
}

template <class T>
T read_value() {
  T value{};
  worker::require(read_bytes(&value, sizeof value), "request", "cut short");
  return value;
}

void write_bytes(const void* from, size_t bytes) {
  if (bytes == 0) return;
  worker::require(std::fwrite(from, 1, bytes, stdout) == bytes, "answer", "cannot be written");
}

Buffer read_buffer() {
  Buffer buffer{};
  buffer.offset = read_value<uint64_t>();
  buffer.bytes = read_value<uint64_t>();
  std::vector<uint8_t> content(buffer.bytes);
  worker::require(read_bytes(content.data(), buffer.bytes), "request", "cut short");
  buffer.memory = device_allocate(buffer.offset + buffer.bytes);
  copy_to_device(buffer.memory + buffer.offset, content.data(), buffer.bytes);
  return buffer;
}

void write_buffer(const Buffer& buffer) {
  std::vector<uint8_t> content(buffer.bytes);
  copy_to_host(content.data(), buffer.memory + buffer.offset, buffer.bytes);
  write_bytes(content.data(), buffer.bytes);
}

worker::Argument read_argument(std::vector<Buffer>* buffers) {
  worker::Argument argument{};
  argument.kind = read_value<char>();
  switch (argument.kind) {
    case 'i':
      argument.integer = read_value<int64_t>();
      break;
    case 'd':
      argument.number = read_value<double>();
      break;
    default:
      buffers->push_back(read_buffer());
      argument.buffer = buffers->back().memory + buffers->back().offset;
  }
  return argument;
}

void choose_schedule([[maybe_unused]] int32_t order, [[maybe_unused]] uint64_t seed) {
#if !defined(__CUDACC__)
  emulator::set_schedule(static_cast<emulator::Order>(order), seed);
#endif
}

uint64_t launches() {
#if defined(__CUDACC__)
  return 0;
#else
  return emulator::launch_count();
#endif
}

// Serves one request; false when there is none left.
bool serve() {
  uint32_t name_bytes = 0;
  if (!read_bytes(&name_bytes, sizeof name_bytes)) return false;
  std::string name(name_bytes, '\0');
  worker::require(read_bytes(name.data(), name_bytes), "request", "cut short");
  const auto order = read_value<int32_t>();
  choose_schedule(order, read_value<uint64_t>());
  std::vector<Buffer> buffers;
  worker::Arguments arguments(read_value<uint32_t>());
  for (worker::Argument& argument : arguments) argument = read_argument(&buffers);

  const auto entry = worker::entries().find(name);
  worker::require(entry != worker::entries().end(), name.c_str(), "no such entry");
  const int32_t status = entry->second(arguments);
  device_synchronize();

  const uint64_t count = launches();
  write_bytes(&status, sizeof status);
  write_bytes(&count, sizeof count);
  for (const Buffer& buffer : buffers) {
    write_buffer(buffer);
    device_free(buffer.memory);
  }
  std::fflush(stdout);
  return true;
}

}  // namespace

int main() {
  while (serve()) {
  }
}
