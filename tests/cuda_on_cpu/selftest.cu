// Kernels that show what CUDA's operations give, to be compared with what they should.
#include "../../csrc/cuda/compat.h"
#include "entries.h"

namespace fused_dropout {
namespace {

// Every row of `out` is one operation's result in all threads of all blocks.
struct Rows {
  int* out;
  FUSED_DROPOUT_DEVICE void put(int value) {
    const int threads = gridDim.x * blockDim.x;
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
    out += threads;
  }
};

// Blocks of one whole warp and part of another.
__global__ void warp_kernel(int* out) {
  const int t = threadIdx.x;
  const unsigned mask = t < 32 ? ~0u : (1u << (blockDim.x - 32)) - 1;
  const int value = t * 7 + 3;
  Rows rows{out};
  rows.put(__shfl_sync(mask, value, 5));
  rows.put(__shfl_sync(mask, value, t + 1, 8));
  rows.put(__shfl_up_sync(mask, value, 3));
  rows.put(__shfl_up_sync(mask, value, 3, 8));
  rows.put(__shfl_down_sync(mask, value, 2, 16));
  rows.put(__shfl_xor_sync(mask, value, 5, 8));
  rows.put(__shfl_xor_sync(mask, value, 9, 8));
  rows.put(static_cast<int>(__shfl_xor_sync(mask, value + 0.5, 1) * 2));
  rows.put(static_cast<int>(__ballot_sync(mask, value & 1)));
  rows.put(__any_sync(mask, t == 33));
  rows.put(__all_sync(mask, t < 32));
  // Halves of a warp that part and meet among themselves.
  if (t % 2) {
    rows.put(__shfl_xor_sync(mask & 0xAAAAAAAAu, value, 2));
  } else {
    rows.put(__shfl_xor_sync(mask & 0x55555555u, value, 4));
  }
}

__global__ void barrier_kernel(int* out) {
  const int t = threadIdx.x;
  Rows rows{out};
  rows.put(__syncthreads_count(t % 3 == 0));
  rows.put(__syncthreads_and(t < 1000));
  rows.put(__syncthreads_and(t != 7));
  rows.put(__syncthreads_or(t == 40));
  rows.put(__syncthreads_or(t < 0));
}

// Where the thread stands: its number from its coordinates, and the extents.
__global__ void index_kernel(int* out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = block * threads + thread;
}

__global__ void atomic_kernel(int* ints, float* floats, double* doubles) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&ints[0], t);
  atomicMax(&ints[1], t);
  atomicMin(&ints[2], t);
  atomicOr(&ints[3], 1 << t % 31);
  atomicInc(reinterpret_cast<unsigned*>(&ints[4]), 9u);
  if (atomicCAS(&ints[5], 0, t + 1) == 0) atomicExch(&ints[6], t + 1);
  atomicAdd(&floats[0], 0.5f);
  atomicAdd(&doubles[0], 0.25);
}

__global__ void bit_kernel(const unsigned* in, unsigned* out) {
  const int t = threadIdx.x;
  const unsigned x = in[t], y = in[t + 1];
  Rows rows{reinterpret_cast<int*>(out)};
  rows.put(__umulhi(x, y));
  rows.put(__popc(x));
  rows.put(__popcll(static_cast<unsigned long long>(y) << 32 | x));
  rows.put(__ffs(x));
  rows.put(__clz(x));
  rows.put(__brev(x));
  rows.put(__funnelshift_l(x, y, 37));
  rows.put(__funnelshift_r(x, y, 5));
  rows.put(__byte_perm(x, y, 0x6250));
  rows.put(__float_as_uint(__uint_as_float(x) * 2.0f));
  rows.put(max(static_cast<int>(x), static_cast<int>(y)));
  rows.put(min(x, y));
}

// Copies of `Bytes` with only `valid` of them read, to shared memory and on to `out`.
template <int Bytes>
__global__ void copy_kernel(const uint8_t* in, uint8_t* out, int valid) {
  FUSED_DROPOUT_SHARED(uint8_t, tile, [32 * Bytes]);
  const int at = threadIdx.x * Bytes;
  copy_async<Bytes>(tile + at, in + at, valid);
  copy_async_commit();
  copy_async_wait<0>();
  for (int i = 0; i < Bytes; ++i) out[at + i] = tile[at + i];
}

// Copies one row of 32 floats after another through two buffers, the next always in flight. Out
// come the row that has arrived, and what stands where the next one will be.
__global__ void pipeline_kernel(const float* in, float* arrived, float* in_flight, int rows) {
  FUSED_DROPOUT_DYNAMIC_SHARED(float, tile);
  const int t = threadIdx.x;
  copy_async<4>(tile + t, in + t);
  copy_async_commit();
  for (int row = 0; row < rows; ++row) {
    float* const here = tile + row % 2 * 32;
    float* const next = tile + (row + 1) % 2 * 32;
    if (row + 1 < rows) copy_async<4>(next + t, in + (row + 1) * 32 + t);
    copy_async_commit();
    copy_async_wait<1>();
    arrived[row * 32 + t] = here[t];
    in_flight[row * 32 + t] = next[t];
  }
}

__global__ void half_kernel(const uint16_t* half, const uint16_t* bfloat, float* wide) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int n = gridDim.x * blockDim.x;
  wide[i] = __half2float(reinterpret_cast<const __half*>(half)[i]);
  wide[n + i] = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bfloat)[i]);
}

__global__ void narrow_kernel(const float* wide, uint16_t* half, uint16_t* bfloat) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  reinterpret_cast<__half*>(half)[i] = __float2half(wide[i]);
  reinterpret_cast<__nv_bfloat16*>(bfloat)[i] = __float2bfloat16(wide[i]);
}

// Widens and narrows pairs.
__global__ void pair_kernel(const uint16_t* in, uint16_t* half, uint16_t* bfloat) {
  const int i = threadIdx.x;
  const auto* halves = reinterpret_cast<const __half2*>(in);
  const auto* bfloats = reinterpret_cast<const __nv_bfloat162*>(in);
  reinterpret_cast<__half2*>(half)[i] = __float22half2_rn(__half22float2(halves[i]));
  reinterpret_cast<__nv_bfloat162*>(bfloat)[i] =
      __float22bfloat162_rn(__bfloat1622float2(bfloats[i]));
}

// Shared memory as a block finds it, which it then writes to.
__global__ void fresh_shared_kernel(int* out, int dynamic_ints) {
  FUSED_DROPOUT_SHARED(int, tile, [4]);
  FUSED_DROPOUT_DYNAMIC_SHARED(int, dynamic);
  int* const row = out + blockIdx.x * (4 + dynamic_ints);
  for (int i = 0; i < 4; ++i) row[i] = tile[i];
  for (int i = 0; i < dynamic_ints; ++i) row[4 + i] = dynamic[i];
  for (int i = 0; i < 4; ++i) tile[i] = 1;
  for (int i = 0; i < dynamic_ints; ++i) dynamic[i] = 2;
}

// Every thread writes the whole of a large dynamic shared memory's share of its own.
__global__ void large_shared_kernel(int* out, int per_thread) {
  FUSED_DROPOUT_DYNAMIC_SHARED(int, tile);
  for (int i = 0; i < per_thread; ++i) tile[i * blockDim.x + threadIdx.x] = i;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < per_thread; ++i) sum += tile[threadIdx.x * per_thread + i];
  atomicAdd(out, sum);
}

int nothing() { return 0; }

int warp_operations(int* out) {
  return launch_kernel<warp_kernel>(dim3(2), dim3(48), 0, nullptr, out);
}
int barrier_votes(int* out) {
  return launch_kernel<barrier_kernel>(dim3(2), dim3(48), 0, nullptr, out);
}
int indices(int* out) {
  return launch_kernel<index_kernel>(dim3(3, 2, 2), dim3(4, 5, 3), 0, nullptr, out);
}
int atomics(int* ints, float* floats, double* doubles) {
  return launch_kernel<atomic_kernel>(dim3(4), dim3(64), 0, nullptr, ints, floats, doubles);
}
int bit_operations(int count, const unsigned* in, unsigned* out) {
  return launch_kernel<bit_kernel>(dim3(1), dim3(static_cast<unsigned>(count)), 0, nullptr, in,
                                   out);
}
int copies(int bytes, int valid, const uint8_t* in, uint8_t* out) {
  if (bytes == 4) return launch_kernel<copy_kernel<4>>(1, 32, 0, nullptr, in, out, valid);
  if (bytes == 8) return launch_kernel<copy_kernel<8>>(1, 32, 0, nullptr, in, out, valid);
  return launch_kernel<copy_kernel<16>>(1, 32, 0, nullptr, in, out, valid);
}
int pipeline(int rows, const float* in, float* arrived, float* in_flight) {
  return launch_kernel<pipeline_kernel>(1, 32, 2 * 32 * sizeof(float), nullptr, in, arrived,
                                        in_flight, rows);
}
int widen_halves(int blocks, const uint16_t* half, const uint16_t* bfloat, float* wide) {
  return launch_kernel<half_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(256), 0, nullptr,
                                    half, bfloat, wide);
}
int narrow_floats(int blocks, const float* wide, uint16_t* half, uint16_t* bfloat) {
  return launch_kernel<narrow_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(256), 0, nullptr,
                                      wide, half, bfloat);
}
int half_pairs(const uint16_t* in, uint16_t* half, uint16_t* bfloat) {
  return launch_kernel<pair_kernel>(1, 128, 0, nullptr, in, half, bfloat);
}
int fresh_shared(int blocks, int dynamic_ints, int* out) {
  return launch_kernel<fresh_shared_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(1),
                                            static_cast<size_t>(dynamic_ints) * sizeof(int),
                                            nullptr, out, dynamic_ints);
}
int large_shared(int threads, int per_thread, int* out) {
  return launch_kernel<large_shared_kernel>(dim3(1), dim3(static_cast<unsigned>(threads)),
                                            sizeof(int) * threads * per_thread, nullptr, out,
                                            per_thread);
}
// A launch that may be impossible.
int launch_shape(int grid_x, int grid_y, int block_x, int block_z, int64_t shared_bytes, int* out) {
  return launch_kernel<large_shared_kernel>(
      dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
      dim3(static_cast<unsigned>(block_x), 1, static_cast<unsigned>(block_z)),
      static_cast<size_t>(shared_bytes), nullptr, out, 0);
}

CUDA_ON_CPU_ENTRY(nothing);
CUDA_ON_CPU_ENTRY(warp_operations);
CUDA_ON_CPU_ENTRY(barrier_votes);
CUDA_ON_CPU_ENTRY(indices);
CUDA_ON_CPU_ENTRY(atomics);
CUDA_ON_CPU_ENTRY(bit_operations);
CUDA_ON_CPU_ENTRY(copies);
CUDA_ON_CPU_ENTRY(pipeline);
CUDA_ON_CPU_ENTRY(widen_halves);
CUDA_ON_CPU_ENTRY(narrow_floats);
CUDA_ON_CPU_ENTRY(half_pairs);
CUDA_ON_CPU_ENTRY(fresh_shared);
CUDA_ON_CPU_ENTRY(large_shared);
CUDA_ON_CPU_ENTRY(launch_shape);

}  // namespace
}  // namespace fused_dropout
