// Walks the survivors of one n-block window by window: masks, and survivors that may be read beyond their end.

#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/sparse.h"
#include "cpu/sparse_spread.h"

namespace torchcoinfer {

constexpr int64_t WINDOW_TILES = 8;        // of most walks: 4 KiB of bytes, 16 KiB of floats
constexpr int64_t CODE_WINDOW_TILES = 32;  // where codes are unpacked, not spread
constexpr int64_t MOST_WINDOW_TILES = 64;  // where nothing is copied
constexpr int64_t WINDOW_WORDS = WINDOW_TILES * TILE_GROUPS;
constexpr int64_t WINDOW_SURVIVORS = WINDOW_WORDS * GROUP_PLACES;

// What windows are built in; one a thread, for any number of blocks.
struct StreamScratch {
  uint64_t masks[MOST_WINDOW_TILES * TILE_GROUPS];
  alignas(64) uint8_t codes[CODE_WINDOW_TILES * TILE_GROUPS * GROUP_PLACES + CHUNK + SURVIVOR_SLACK];
  alignas(64) float floats[WINDOW_SURVIVORS + SURVIVOR_SLACK];
};

class SurvivorStream {
 public:
  SurvivorStream() = default;
  SurvivorStream(const SparseMatrix& w, const Spread& spread, int64_t block, StreamScratch* scratch)
      : w_(&w), spread_(&spread), scratch_(scratch), block_(block), first_(w.first_chunk(block)) {
    chunks_ = w.first_chunk(block + 1) - first_;
  }

  // Masks of tiles [tile, tile + count); false if the stream is too short for them.
  bool open(int64_t tile, int64_t count) {
    const int64_t words = count * TILE_GROUPS, start = (block_ * w_->tiles() + tile) * TILE_GROUPS;
    if (w_->paired) {
      spread_->masks(w_->index + start * 8, words, scratch_->masks);
      masks_ = scratch_->masks;
    } else {
      masks_ = w_->masks + start;
    }
    taken_ = next_;
    next_ += spread_->count(masks_, words);
    return next_ <= chunks_ * CHUNK;
  }
  // Tiles that a window may have: many where survivors are read in place, few where the last ones have to be copied.
  int64_t most_tiles() const {
    return (first_ + chunks_) * CHUNK + SURVIVOR_SLACK <= w_->chunks * CHUNK ? MOST_WINDOW_TILES : WINDOW_TILES;
  }
  const uint64_t* masks() const {
    return masks_;
  }
  int64_t count() const {
    return next_ - taken_;
  }
  // The window's chunks, and how many survivors of the first belong to the window before.
  struct Packed {
    const uint8_t* chunks;
    int64_t count;
    int64_t before;
  };
  Packed packed() const {
    const int64_t begin = taken_ / CHUNK, bytes = chunk_bytes(w_->bits);
    return {static_cast<const uint8_t*>(w_->values) + (first_ + begin) * bytes, ceil_div(next_, CHUNK) - begin,
            taken_ % CHUNK};
  }
  // The window's survivors as codes + shift; at most CODE_WINDOW_TILES.
  const uint8_t* codes(int shift) {
    const Packed source = packed();
    if (source.count > 0) spread_->unpack(source.chunks, source.count, w_->bits, shift, scratch_->codes);
    return scratch_->codes + source.before;
  }
  // The window's survivors as stored floats; the last of the tensor are copied, since kernels read beyond them.
  const void* floats() {
    const int64_t size = dtype_bytes(w_->value_dtype), begin = first_ * CHUNK + taken_;
    const uint8_t* source = static_cast<const uint8_t*>(w_->values) + begin * size;
    if (first_ * CHUNK + next_ + SURVIVOR_SLACK <= w_->chunks * CHUNK) return source;
    std::memcpy(scratch_->floats, source, count() * size);
    return scratch_->floats;
  }
  bool complete() const {
    return ceil_div(next_, CHUNK) == chunks_;
  }

 private:
  const SparseMatrix* w_ = nullptr;
  const Spread* spread_ = nullptr;
  StreamScratch* scratch_ = nullptr;
  int64_t block_ = 0, first_ = 0, chunks_ = 0;
  int64_t taken_ = 0, next_ = 0;  // survivors of the block before and after the open window
  const uint64_t* masks_ = nullptr;
};

}  // namespace torchcoinfer
