// libnbd, loaded at run time: the parts of its interface that are used here, declared as in its own header, so that the program
// can be built, and run without NBD images, without the library.
#ifndef CLINUX_NBD_H
#define CLINUX_NBD_H

#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct nbd_handle;

// Passed by value.
typedef struct {
  int (*callback)(void *user_data, int *error);
  void *user_data;
  void (*free)(void *user_data);
} clinux_nbd_completion;

struct clinux_nbd {
  struct nbd_handle *(*create)(void);
  void (*close)(struct nbd_handle *);
  const char *(*get_error)(void);
  int (*get_errno)(void);
  int (*set_export_name)(struct nbd_handle *, const char *);
  int (*set_full_info)(struct nbd_handle *, bool);
  int (*set_request_structured_replies)(struct nbd_handle *, bool);
  int (*supports_tls)(struct nbd_handle *);
  int (*set_tls)(struct nbd_handle *, int);
  int (*set_tls_certificates)(struct nbd_handle *, const char *);
  int (*set_tls_psk_file)(struct nbd_handle *, const char *);
  int (*set_tls_username)(struct nbd_handle *, const char *);
  int (*set_tls_verify_peer)(struct nbd_handle *, bool);
  int (*aio_connect)(struct nbd_handle *, const struct sockaddr *, socklen_t);
  int (*aio_connect_tcp)(struct nbd_handle *, const char *, const char *);
  int (*aio_disconnect)(struct nbd_handle *, uint32_t);
  int (*aio_get_fd)(struct nbd_handle *);
  unsigned (*aio_get_direction)(struct nbd_handle *);
  int (*aio_notify_read)(struct nbd_handle *);
  int (*aio_notify_write)(struct nbd_handle *);
  int (*aio_is_ready)(struct nbd_handle *);
  int (*aio_is_dead)(struct nbd_handle *);
  int (*aio_is_closed)(struct nbd_handle *);
  int64_t (*get_size)(struct nbd_handle *);
  int64_t (*get_block_size)(struct nbd_handle *, int);
  int (*is_read_only)(struct nbd_handle *);
  int (*can_flush)(struct nbd_handle *);
  int (*can_fua)(struct nbd_handle *);
  int (*can_trim)(struct nbd_handle *);
  int (*can_zero)(struct nbd_handle *);
  int (*can_multi_conn)(struct nbd_handle *);
  int64_t (*aio_pread)(struct nbd_handle *, void *, size_t, uint64_t, clinux_nbd_completion, uint32_t);
  int64_t (*aio_pwrite)(struct nbd_handle *, const void *, size_t, uint64_t, clinux_nbd_completion, uint32_t);
  int64_t (*aio_flush)(struct nbd_handle *, clinux_nbd_completion, uint32_t);
  int64_t (*aio_trim)(struct nbd_handle *, uint64_t, uint64_t, clinux_nbd_completion, uint32_t);
  int64_t (*aio_zero)(struct nbd_handle *, uint64_t, uint64_t, clinux_nbd_completion, uint32_t);
  // Since libnbd 1.22; NULL before.
  int (*set_tls_hostname)(struct nbd_handle *, const char *);
};

// LIBNBD_TLS_REQUIRE
enum { clinux_nbd_tls_required = 2 };

// Fills the table. Returns NULL, or what is missing: a message of the loader, or a function's name. The library is never
// unloaded.
static inline const char *clinux_nbd_load(struct clinux_nbd *table) {
  void *library = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *reason = dlerror();
    return reason ? reason : "it cannot be loaded";
  }
  static const char *const names[] = {
      "nbd_create",          "nbd_close",           "nbd_get_error",        "nbd_get_errno",        "nbd_set_export_name",
      "nbd_set_full_info",   "nbd_set_request_structured_replies", "nbd_supports_tls",    "nbd_set_tls",          "nbd_set_tls_certificates",
      "nbd_set_tls_psk_file", "nbd_set_tls_username", "nbd_set_tls_verify_peer",
      "nbd_aio_connect",     "nbd_aio_connect_tcp", "nbd_aio_disconnect",   "nbd_aio_get_fd",       "nbd_aio_get_direction",
      "nbd_aio_notify_read", "nbd_aio_notify_write", "nbd_aio_is_ready",    "nbd_aio_is_dead",      "nbd_aio_is_closed",
      "nbd_get_size",        "nbd_get_block_size",  "nbd_is_read_only",     "nbd_can_flush",        "nbd_can_fua",
      "nbd_can_trim",        "nbd_can_zero",        "nbd_can_multi_conn",   "nbd_aio_pread",        "nbd_aio_pwrite",
      "nbd_aio_flush",       "nbd_aio_trim",        "nbd_aio_zero",        "nbd_set_tls_hostname",
  };
  enum { count = sizeof(names) / sizeof(names[0]) };
  _Static_assert(sizeof(struct clinux_nbd) == count * sizeof(void *), "each function has a name");
  void **places = (void **)table;
  for (size_t index = 0; index < count; index++) {
    places[index] = dlsym(library, names[index]);
    if (!places[index] && index != count - 1) return names[index];
  }
  return NULL;
}

// Tags whose commands are all complete, oldest first: a ring with room for every tag. Used by one thread, like everything here.
struct clinux_nbd_done {
  uint32_t *tags;
  uint32_t room;
  uint32_t first;
  uint32_t count;
};

static inline void clinux_nbd_push(struct clinux_nbd_done *done, uint32_t tag) {
  uint32_t place = done->first + done->count;
  done->tags[place < done->room ? place : place - done->room] = tag;
  done->count++;
}

static inline uint32_t clinux_nbd_pop(struct clinux_nbd_done *done) {
  uint32_t tag = done->tags[done->first];
  if (++done->first == done->room) done->first = 0;
  done->count--;
  return tag;
}

// A request to a server under one tag, made of one or more commands.
struct clinux_nbd_job {
  struct clinux_nbd_done *done;
  uint32_t tag;
  // Commands that are not complete.
  uint32_t left;
  // The first error of any, an errno; 0: none.
  int32_t error;
};

// Called by the library, on the thread that drives the connection, when a command is complete.
static inline int clinux_nbd_completed(void *data, int *error) {
  struct clinux_nbd_job *job = (struct clinux_nbd_job *)data;
  if (*error && !job->error) job->error = *error;
  if (--job->left == 0) clinux_nbd_push(job->done, job->tag);
  return 1; // the library retires the command
}

static inline clinux_nbd_completion clinux_nbd_to(struct clinux_nbd_job *job) {
  clinux_nbd_completion completion = {clinux_nbd_completed, job, NULL};
  return completion;
}

#endif
