// Attention of queries over keys and values in pages. The softmax is computed online (Milakov and Gimelshein 2018, "Online
// normalizer calculation for softmax"), in steps of 64 keys counted from position 0 of the sequence: a query's result
// depends neither on the other queries, nor on threads, nor on how the prompt was split.
#pragma once

#include "kernels.h"
#include "load.h"

namespace {

using llmctl::kKeyBlock;
using llmctl::kQueryRows;

constexpr float kLowest = -3.0e38f;  // initial value of a running maximum: finite, so that differences are not NaN

// exp(x) for x <= 0 (Cody and Waite's reduction, a polynomial of degree 6); 0 below -87.
inline Simd::F exponential(Simd::F x) {
    const Simd::F low = Simd::set(-87.0f), clamped = Simd::max(x, low);
    const Simd::F magic = Simd::set(12582912.0f);
    const Simd::F n = Simd::sub(Simd::fma(clamped, Simd::set(1.44269504088896341f), magic), magic);
    Simd::F r = Simd::fma(n, Simd::set(-0.693359375f), clamped);
    r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
    Simd::F p = Simd::set(1.3981999507e-3f);
    p = Simd::fma(p, r, Simd::set(8.3334519073e-3f));
    p = Simd::fma(p, r, Simd::set(4.1665795894e-2f));
    p = Simd::fma(p, r, Simd::set(1.6666665459e-1f));
    p = Simd::fma(p, r, Simd::set(5.0000001201e-1f));
    p = Simd::fma(Simd::mul(r, r), p, Simd::add(r, Simd::set(1.0f)));
    return Simd::where_less(x, low, Simd::zero(), Simd::mul(p, Simd::two_to(n)));
}

// softcap * tanh(s / softcap)
inline Simd::F capped(Simd::F s, float softcap) {
    const Simd::F x = Simd::mul(s, Simd::set(1.0f / softcap)), zero = Simd::zero();
    const Simd::F size = Simd::max(x, Simd::sub(zero, x));
    const Simd::F e = exponential(Simd::mul(size, Simd::set(-2.0f)));
    const Simd::F one = Simd::set(1.0f);
    const Simd::F bent = Simd::mul(Simd::set(softcap), Simd::div(Simd::sub(one, e), Simd::add(one, e)));
    return Simd::where_less(x, zero, Simd::sub(zero, bent), bent);
}

inline void load_row(const void* base, int dtype, Size at, Size count, float* to, Size padded) {
    Size i = 0;
    for (; i + Simd::kLanes <= count; i += Simd::kLanes) Simd::store(to + i, load_any(base, dtype, at + i));
    if (i < count) convert_to_f32(advanced(base, dtype, at + i), dtype, to + i, count - i);
    for (i = count; i < padded; ++i) to[i] = 0.0f;
}

// The keys or the values of a sequence in their pages.
struct Pool {
    const void* base;
    int dtype;
    Size block_stride, slot_stride, head_stride, width;
    const int32_t* table;
    Size block_size;
    Size head = 0;

    Pool of_head(Size which) const {
        Pool one = *this;
        one.head = which;
        return one;
    }

    // Offsets of the positions first+begin..first+end.
    void places(Size first, Size begin, Size end, Size* to) const {
        Size block = (first + begin) / block_size, slot = (first + begin) % block_size;
        for (Size i = begin; i < end; ++i) {
            to[i] = table[block] * block_stride + slot * slot_stride + head * head_stride;
            if (++slot == block_size) {
                slot = 0;
                ++block;
            }
        }
    }
};

// Keys first+begin..first+end as columns: to[input][64]; the others are zero.
inline void load_keys(const Pool& pool, Size first, Size begin, Size end, float* to) {
    constexpr int kLanes = Simd::kLanes;
    Size places[kKeyBlock];
    pool.places(first, begin, end, places);
    for (Size key = 0; key < kKeyBlock; key += kLanes) {
        for (Size d = 0; d < pool.width; d += kLanes) {
            const Size count = pool.width - d < kLanes ? pool.width - d : kLanes;
            Simd::F rows[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                if (key + i < begin || key + i >= end) {
                    rows[i] = Simd::zero();
                } else if (count == kLanes) {
                    rows[i] = load_any(pool.base, pool.dtype, places[key + i] + d);
                } else {
                    float rest[kLanes];
                    load_row(pool.base, pool.dtype, places[key + i] + d, count, rest, kLanes);
                    rows[i] = Simd::load(rest);
                }
            }
            Simd::transpose(rows);
            for (int i = 0; i < count; ++i) Simd::store(to + (d + i) * kKeyBlock + key, rows[i]);
        }
    }
}

// Values first+begin..first+end: to[key][padded width].
inline void load_values(const Pool& pool, Size first, Size begin, Size end, float* to) {
    Size places[kKeyBlock];
    pool.places(first, begin, end, places);
    const Size width = llmctl::padded(pool.width);
    for (Size i = begin; i < end; ++i) load_row(pool.base, pool.dtype, places[i], pool.width, to + i * width, width);
}

template <int Rows, int Vectors>
inline void score_tile(const float* q, Size q_stride, const float* keys, Size width, float* to) {
    Simd::F sums[Rows][Vectors];
    for (int t = 0; t < Rows; ++t)
        for (int v = 0; v < Vectors; ++v) sums[t][v] = Simd::zero();
    for (Size d = 0; d < width; ++d) {
        Simd::F columns[Vectors];
        for (int v = 0; v < Vectors; ++v) columns[v] = Simd::load(keys + d * kKeyBlock + v * Simd::kLanes);
        for (int t = 0; t < Rows; ++t) {
            const Simd::F one = Simd::set(q[t * q_stride + d]);
            for (int v = 0; v < Vectors; ++v) sums[t][v] = Simd::fma(one, columns[v], sums[t][v]);
        }
    }
    for (int t = 0; t < Rows; ++t)
        for (int v = 0; v < Vectors; ++v) Simd::store(to + t * kKeyBlock + v * Simd::kLanes, sums[t][v]);
}

template <int Rows, int Vectors>
inline void value_tile(const float* weights, const float* values, Size value_stride, Size keys, float* to, Size to_stride) {
    Simd::F sums[Rows][Vectors];
    for (int t = 0; t < Rows; ++t)
        for (int v = 0; v < Vectors; ++v) sums[t][v] = Simd::load(to + t * to_stride + v * Simd::kLanes);
    for (Size key = 0; key < keys; ++key) {
        Simd::F columns[Vectors];
        for (int v = 0; v < Vectors; ++v) columns[v] = Simd::load(values + key * value_stride + v * Simd::kLanes);
        for (int t = 0; t < Rows; ++t) {
            const Simd::F one = Simd::set(weights[t * kKeyBlock + key]);
            for (int v = 0; v < Vectors; ++v) sums[t][v] = Simd::fma(one, columns[v], sums[t][v]);
        }
    }
    for (int t = 0; t < Rows; ++t)
        for (int v = 0; v < Vectors; ++v) Simd::store(to + t * to_stride + v * Simd::kLanes, sums[t][v]);
}

constexpr int kScoreVectors = Simd::kLanes == 16 ? 4 : 2;

inline void all_scores(const float* q, Size q_stride, Size rows, const float* keys, Size width, float* to) {
    for (Size v = 0; v < kKeyBlock; v += kScoreVectors * Simd::kLanes) {
        Size t = 0;
        for (; t + 4 <= rows; t += 4) {
            score_tile<4, kScoreVectors>(q + t * q_stride, q_stride, keys + v, width, to + t * kKeyBlock + v);
        }
        for (; t < rows; ++t) {
            score_tile<1, kScoreVectors>(q + t * q_stride, q_stride, keys + v, width, to + t * kKeyBlock + v);
        }
    }
}

inline void add_values(const float* weights, const float* values, Size width, Size keys, Size rows, float* to) {
    for (Size v = 0; v < width;) {
        const bool wide = v + kScoreVectors * Simd::kLanes <= width;
        Size t = 0;
        for (; t + 4 <= rows; t += 4) {
            if (wide) value_tile<4, kScoreVectors>(weights + t * kKeyBlock, values + v, width, keys, to + t * width + v, width);
            else value_tile<4, 1>(weights + t * kKeyBlock, values + v, width, keys, to + t * width + v, width);
        }
        for (; t < rows; ++t) {
            if (wide) value_tile<1, kScoreVectors>(weights + t * kKeyBlock, values + v, width, keys, to + t * width + v, width);
            else value_tile<1, 1>(weights + t * kKeyBlock, values + v, width, keys, to + t * width + v, width);
        }
        v += wide ? kScoreVectors * Simd::kLanes : Simd::kLanes;
    }
}

// One step of the online softmax for one row. Replace scores by weights; return the factor for the sums so far.
inline float softmax_step(float* scores, Size seen_begin, Size seen_end, float scale, float softcap, float& peak,
                          float& sum) {
    Simd::F highest = Simd::set(kLowest);
    for (Size i = 0; i < kKeyBlock; i += Simd::kLanes) {
        Simd::F s = Simd::mul(Simd::load(scores + i), Simd::set(scale));
        if (softcap > 0.0f) s = capped(s, softcap);
        Simd::store(scores + i, s);
    }
    for (Size i = 0; i < seen_begin; ++i) scores[i] = -as_float(0x7f800000u);
    for (Size i = seen_end > seen_begin ? seen_end : seen_begin; i < kKeyBlock; ++i) scores[i] = -as_float(0x7f800000u);
    for (Size i = 0; i < kKeyBlock; i += Simd::kLanes) highest = Simd::max(highest, Simd::load(scores + i));
    float lanes[Simd::kLanes];
    Simd::store(lanes, highest);
    float new_peak = peak;
    for (const float lane : lanes) new_peak = lane > new_peak ? lane : new_peak;
    Simd::F weights = Simd::zero();
    for (Size i = 0; i < kKeyBlock; i += Simd::kLanes) {
        const Simd::F p = exponential(Simd::sub(Simd::load(scores + i), Simd::set(new_peak)));
        Simd::store(scores + i, p);
        weights = Simd::add(weights, p);
    }
    Simd::store(lanes, exponential(Simd::set(peak - new_peak)));
    const float correction = lanes[0];
    sum = sum * correction + Simd::total(weights);
    peak = new_peak;
    return correction;
}

// The queries of some rows for one key head, and the online softmax's results so far.
struct State {
    float *q, *out, *peaks, *sums;
};

// Rows are (query, query head of the group) pairs: row i is query i / group, head i % group. The key heads of a piece are
// processed together for each block of keys, because they are adjacent in memory.
inline void attention(const llmctl::Attention& job, const llmctl::AttentionPiece& piece, float* scratch) {
    const Size group = job.query_heads / job.kv_heads, rows = piece.row_end - piece.row_begin;
    const Size heads = piece.head_end - piece.head_begin;
    const Size width = llmctl::padded(job.width), value_width = llmctl::padded(job.value_width);
    const Size start = job.query_start[piece.sequence];
    const Size position = job.kv_length[piece.sequence] - (job.query_start[piece.sequence + 1] - start);  // of query 0
    float* scores = scratch;
    float* keys = scores + kQueryRows * kKeyBlock;
    float* values = keys + kKeyBlock * width;
    float* states = values + kKeyBlock * value_width;

    const int32_t* table = job.block_table + piece.sequence * job.max_blocks;
    const Pool all_keys{job.k, job.kv_dtype, job.k_block_stride, job.k_slot_stride, job.k_head_stride,
                        job.width, table, job.block_size};
    const Pool all_values{job.v, job.kv_dtype, job.v_block_stride, job.v_slot_stride, job.v_head_stride,
                          job.value_width, table, job.block_size};
    const auto state_of = [&](Size head) {
        float* at = states + head * rows * (width + value_width + 2);
        return State{at, at + rows * width, at + rows * (width + value_width), at + rows * (width + value_width + 1)};
    };
    const auto query_of = [&](Size head, Size row) {
        return (start + (piece.row_begin + row) / group) * job.query_heads + (piece.head_begin + head) * group +
               (piece.row_begin + row) % group;
    };
    for (Size head = 0; head < heads; ++head) {
        const State state = state_of(head);
        for (Size t = 0; t < rows; ++t) {
            load_row(job.q, job.q_dtype, query_of(head, t) * job.width, job.width, state.q + t * width, width);
            const Size query_head = (piece.head_begin + head) * group + (piece.row_begin + t) % group;
            state.peaks[t] = job.sinks ? job.sinks[query_head] : kLowest;
            state.sums[t] = job.sinks ? 1.0f : 0.0f;
        }
        std::memset(state.out, 0, static_cast<size_t>(rows * value_width) * 4);
    }

    const auto first_seen = [&](Size at) {
        const Size first = job.window > 0 && at >= job.window ? at - job.window + 1 : 0;
        const Size of_chunk = job.chunk > 0 ? at / job.chunk * job.chunk : 0;
        return first > of_chunk ? first : of_chunk;
    };
    // The end of the tokens that a query sees: the query itself, or the end of an image around it.
    const auto end_of = [&](Size query) {
        return job.visible_end ? static_cast<Size>(job.visible_end[start + query]) : position + query + 1;
    };
    Size last = 0;
    for (Size query = piece.row_begin / group; query <= (piece.row_end - 1) / group; ++query) {
        last = end_of(query) - 1 > last ? end_of(query) - 1 : last;
    }
    const Size first = first_seen(position + piece.row_begin / group);  // pages of earlier tokens may hold something else
    for (Size key = first / kKeyBlock * kKeyBlock; key <= last; key += kKeyBlock) {
        const Size skipped = first > key ? first - key : 0;
        const Size count = last + 1 - key < kKeyBlock ? last + 1 - key : kKeyBlock;
        for (Size head = 0; head < heads; ++head) {
            const State state = state_of(head);
            load_keys(all_keys.of_head(piece.head_begin + head), key, skipped, count, keys);
            load_values(all_values.of_head(piece.head_begin + head), key, skipped, count, values);
            all_scores(state.q, width, rows, keys, job.width, scores);
            for (Size t = 0; t < rows; ++t) {
                const Size at = position + (piece.row_begin + t) / group;
                const Size seen = first_seen(at), begin = seen > key ? seen - key : 0;
                const Size visible = end_of((piece.row_begin + t) / group);
                const Size end = visible - key < 0 ? 0 : visible - key;
                const float correction =
                    softmax_step(scores + t * kKeyBlock, begin < kKeyBlock ? begin : kKeyBlock,
                                 end < kKeyBlock ? end : kKeyBlock, job.scale, job.softcap, state.peaks[t], state.sums[t]);
                if (correction != 1.0f) {
                    for (Size i = 0; i < value_width; ++i) state.out[t * value_width + i] *= correction;
                }
            }
            add_values(scores + skipped, values + skipped * value_width, value_width, count - skipped, rows, state.out);
        }
    }
    for (Size head = 0; head < heads; ++head) {
        const State state = state_of(head);
        for (Size t = 0; t < rows; ++t) {
            float* row = state.out + t * value_width;
            for (Size i = 0; i < job.value_width; ++i) row[i] /= state.sums[t];
            convert_from_f32(row, advanced(job.out, job.q_dtype, query_of(head, t) * job.value_width), job.q_dtype,
                             job.value_width);
        }
    }
}

}  // namespace
