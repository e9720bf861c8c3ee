// zlib and zstd, loaded at run time: the parts of their interfaces that are used here, declared as in their own headers, so
// that the program can be built, and run without compressed images, without them.
#ifndef CLINUX_COMPRESSION_H
#define CLINUX_COMPRESSION_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

// z_stream of zlib 1.x.
struct clinux_zlib_stream {
  const uint8_t *next_in;
  unsigned avail_in;
  unsigned long total_in;
  uint8_t *next_out;
  unsigned avail_out;
  unsigned long total_out;
  const char *msg;
  void *state;
  void *(*zalloc)(void *, unsigned, unsigned);
  void (*zfree)(void *, void *);
  void *opaque;
  int data_type;
  unsigned long adler;
  unsigned long reserved;
};

struct clinux_zlib {
  int (*inflateInit2_)(struct clinux_zlib_stream *, int, const char *, int);
  int (*inflate)(struct clinux_zlib_stream *, int);
  int (*inflateEnd)(struct clinux_zlib_stream *);
};

struct clinux_zstd_in {
  const void *source;
  size_t size;
  size_t position;
};

struct clinux_zstd_out {
  void *target;
  size_t size;
  size_t position;
};

struct clinux_zstd {
  void *(*create)(void);
  size_t (*release)(void *);
  size_t (*set)(void *, int, int);
  size_t (*decompress)(void *, struct clinux_zstd_out *, struct clinux_zstd_in *);
  unsigned (*isError)(size_t);
};

// Returns 0 if every function is there. A library is never unloaded.
static inline int clinux_load(const char *name, const char *const *names, void **places, size_t count) {
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) return -1;
  for (size_t index = 0; index < count; index++) {
    places[index] = dlsym(library, names[index]);
    if (!places[index]) return -1;
  }
  return 0;
}

static inline int clinux_zlib_load(struct clinux_zlib *table) {
  static const char *const names[] = {"inflateInit2_", "inflate", "inflateEnd"};
  return clinux_load("libz.so.1", names, (void **)table, 3);
}

static inline int clinux_zstd_load(struct clinux_zstd *table) {
  static const char *const names[] = {
      "ZSTD_createDCtx", "ZSTD_freeDCtx", "ZSTD_DCtx_setParameter", "ZSTD_decompressStream", "ZSTD_isError"};
  return clinux_load("libzstd.so.1", names, (void **)table, 5);
}

// Decompresses a raw deflate stream until the target is full. Returns 1 if it is.
static inline int clinux_inflate(
    const struct clinux_zlib *zlib, const void *source, size_t count, void *target, size_t room) {
  struct clinux_zlib_stream stream = {0};
  stream.next_in = (const uint8_t *)source;
  stream.avail_in = (unsigned)count;
  stream.next_out = (uint8_t *)target;
  stream.avail_out = (unsigned)room;
  // 15: the largest window. Only the first character of the version is compared.
  if (zlib->inflateInit2_(&stream, -15, "1", (int)sizeof stream) != 0) return 0;
  // 4 is Z_FINISH, 1 is Z_STREAM_END, −5 is Z_BUF_ERROR: bytes after the cluster in its last sector belong to another one.
  int result = zlib->inflate(&stream, 4);
  zlib->inflateEnd(&stream);
  return (result == 1 || result == -5) && stream.avail_out == 0;
}

// Decompresses a zstd frame until the target is full. Returns 1 if it is.
static inline int clinux_unzstd(
    const struct clinux_zstd *zstd, const void *source, size_t count, void *target, size_t room) {
  void *context = zstd->create();
  if (!context) return 0;
  // 100 is ZSTD_d_windowLogMax: a cluster has at most 2^21 bytes, so no frame needs the memory of a larger window.
  zstd->set(context, 100, 22);
  struct clinux_zstd_in in = {source, count, 0};
  struct clinux_zstd_out out = {target, room, 0};
  while (out.position < out.size) {
    size_t before = in.position + out.position;
    size_t result = zstd->decompress(context, &out, &in);
    if (zstd->isError(result) || result == 0 || in.position + out.position == before) break;
  }
  zstd->release(context);
  return out.position == out.size;
}

#endif
