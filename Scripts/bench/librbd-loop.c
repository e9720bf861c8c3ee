// A bare loop of librbd: random or sequential reads or writes at a fixed depth, without virtio, and its cost. What vmm-blk
// adds to the library is measured against it.
//
//   librbd-loop CONF POOL IMAGE MODE BYTES DEPTH RAMP SECONDS
//
// MODE as fio's --rw: randread, randwrite, read, write. Prints one line of JSON: requests per second, CPU time of the process
// with the library's threads in µs per request, and latencies in µs. The library's settings are the ones that vmm-blk uses.
//
//   cc -O2 -I Sources/CLinux -o librbd-loop Scripts/bench/librbd-loop.c
#include "RBD.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { most_depth = 1024, most_samples = 1 << 22 };

struct request {
  struct iovec piece;
  uint64_t started;
  int index;
};

static struct clinux_rbd rbd;
static void *image;
static struct request requests[most_depth];
// Finished ones, by index, for the thread that issues the next.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t some = PTHREAD_COND_INITIALIZER;
static int finished[most_depth], count;
static ssize_t failure;

static void end(const char *what, long error) {
  fprintf(stderr, "librbd-loop: %s: %s\n", what, strerror((int)(error < 0 ? -error : error)));
  exit(1);
}

static void need(const char *what, long result) {
  if (result < 0) end(what, result);
}

static uint64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static double cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void done(void *completion, void *argument) {
  struct request *request = argument;
  ssize_t result = rbd.aio_get_return_value(completion);
  rbd.aio_release(completion);
  pthread_mutex_lock(&lock);
  if (result < 0) failure = result;
  finished[count++] = request->index;
  pthread_mutex_unlock(&lock);
  pthread_cond_signal(&some);
}

static int by_size(const void *a, const void *b) {
  uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
  return left < right ? -1 : left > right;
}

int main(int argc, char **argv) {
  if (argc != 9) {
    fprintf(stderr, "usage: librbd-loop CONF POOL IMAGE MODE BYTES DEPTH RAMP SECONDS\n");
    return 64;
  }
  const char *mode = argv[4];
  size_t bytes = strtoul(argv[5], NULL, 10);
  int depth = atoi(argv[6]);
  double ramp = atof(argv[7]), seconds = atof(argv[8]);
  bool is_random = !strncmp(mode, "rand", 4), is_read = !strcmp(is_random ? mode + 4 : mode, "read");
  if (depth < 1 || depth > most_depth || bytes < 512) end("depth or size", EINVAL);
  const char *missing = clinux_rbd_load(&rbd);
  if (missing) {
    fprintf(stderr, "librbd-loop: librbd: %s\n", missing);
    return 1;
  }
  void *cluster, *context;
  need("rados_create", rbd.rados_create(&cluster, "admin"));
  need(argv[1], rbd.rados_conf_read_file(cluster, argv[1]));
  // Without the library's cache, which would answer writes before the cluster does.
  need("rbd_cache", rbd.rados_conf_set(cluster, "rbd_cache", "false"));
  need("rados_connect", rbd.rados_connect(cluster));
  need(argv[2], rbd.rados_ioctx_create(cluster, argv[2], &context));
  need(argv[3], rbd.open(context, argv[3], &image, NULL));
  uint64_t size;
  need("size", rbd.get_size(image, &size));
  uint64_t blocks = size / bytes, place = 0, state = 88172645463325252u;
  if (!blocks) end("size of the image", EINVAL);
  uint32_t *samples = malloc(most_samples * sizeof *samples);
  unsigned char *memory = NULL;
  if (!samples || posix_memalign((void **)&memory, 4096, bytes * (size_t)depth)) end("memory", ENOMEM);
  memset(memory, 0x5a, bytes * (size_t)depth);

  int waiting[most_depth], ready = depth, in_flight = 0;
  for (int index = 0; index < depth; index++) {
    requests[index].index = waiting[index] = index;
    requests[index].piece = (struct iovec){memory + bytes * (size_t)index, bytes};
  }
  uint64_t begin = now(), from = begin + (uint64_t)(ramp * 1e9), until = from + (uint64_t)(seconds * 1e9), last = begin;
  uint64_t operations = 0, measured = 0;
  double used = 0;
  bool is_measuring = false;
  while (true) {
    last = now();
    if (!is_measuring && last >= from) is_measuring = true, from = last, used = cpu();
    if (last >= until) break;
    for (int index = 0; index < ready; index++) {
      struct request *request = &requests[waiting[index]];
      if (request->started && is_measuring) {
        if (measured < most_samples) samples[measured++] = (uint32_t)(last - request->started);
        operations++;
      }
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      uint64_t block = is_random ? state % blocks : place++ % blocks;
      void *completion;
      request->started = now();
      need("completion", rbd.aio_create_completion(request, done, &completion));
      need(mode, (is_read ? rbd.aio_readv : rbd.aio_writev)(image, &request->piece, 1, block * bytes, completion));
      in_flight++;
    }
    pthread_mutex_lock(&lock);
    while (!count) pthread_cond_wait(&some, &lock);
    memcpy(waiting, finished, sizeof *waiting * (size_t)count);
    ready = count, count = 0;
    ssize_t failed = failure;
    pthread_mutex_unlock(&lock);
    need(mode, failed);
    in_flight -= ready;
  }
  used = cpu() - used;
  double took = (double)(last - from) / 1e9;
  pthread_mutex_lock(&lock);
  while (count < in_flight) pthread_cond_wait(&some, &lock);
  pthread_mutex_unlock(&lock);
  if (!measured) end("no request ended in time", ETIMEDOUT);
  qsort(samples, measured, sizeof *samples, by_size);
  printf("{\"iops\": %.1f, \"cpu\": %.3f, \"p50\": %.1f, \"p99\": %.1f}\n", (double)operations / took,
         used * 1e6 / (double)operations, samples[measured / 2] / 1000.0, samples[measured * 99 / 100] / 1000.0);
  need("close", rbd.close(image));
  rbd.rados_ioctx_destroy(context);
  rbd.rados_shutdown(cluster);
  return 0;
}
