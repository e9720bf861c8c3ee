// librados and librbd, Ceph's libraries, loaded at run time: the parts of their interfaces that are used here, declared as in
// their own headers, so that the program can be built, and run without RBD images, without them.
#ifndef CLINUX_RBD_H
#define CLINUX_RBD_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/uio.h>

// A client that has an image open, according to the cluster.
struct clinux_rbd_watcher {
  char *address;
  int64_t id;
  uint64_t cookie;
};

// A setting of an image, with its effective value.
struct clinux_rbd_setting {
  char *name;
  char *value;
  int source; // 0: the configuration, 1: the pool, 2: the image
};

typedef void (*clinux_rbd_callback)(void *completion, void *argument);

// Connections to a cluster, pools, images and completions are pointers. All functions return 0 or a negative errno unless
// stated otherwise.
struct clinux_rbd {
  int (*rados_create)(void **cluster, const char *id);
  int (*rados_conf_read_file)(void *cluster, const char *path);
  int (*rados_conf_set)(void *cluster, const char *name, const char *value);
  int (*rados_conf_get)(void *cluster, const char *name, char *value, size_t size);
  int (*rados_connect)(void *cluster);
  int (*rados_cluster_fsid)(void *cluster, char *text, size_t size); // a length, or a negative errno
  void (*rados_shutdown)(void *cluster);
  int (*rados_ioctx_create)(void *cluster, const char *pool, void **context);
  void (*rados_ioctx_set_namespace)(void *context, const char *name);
  void (*rados_ioctx_destroy)(void *context);
  int (*open)(void *context, const char *name, void **image, const char *snapshot);
  int (*open_read_only)(void *context, const char *name, void **image, const char *snapshot);
  int (*close)(void *image);
  int (*get_id)(void *image, char *id, size_t size);
  int (*get_size)(void *image, uint64_t *size);
  int (*get_features)(void *image, uint64_t *features);
  int (*config_image_list)(void *image, struct clinux_rbd_setting *settings, int *count);
  void (*config_image_list_cleanup)(struct clinux_rbd_setting *settings, int count);
  int (*lock_acquire)(void *image, int mode);
  int (*lock_release)(void *image);
  int (*lock_get_owners)(void *image, int *mode, char **owners, size_t *count);
  void (*lock_get_owners_cleanup)(char **owners, size_t count);
  int (*lock_break)(void *image, int mode, const char *owner);
  int (*watchers_list)(void *image, struct clinux_rbd_watcher *watchers, size_t *count);
  void (*watchers_list_cleanup)(struct clinux_rbd_watcher *watchers, size_t count);
  int (*update_watch)(void *image, uint64_t *handle, void (*changed)(void *argument), void *argument);
  int (*update_unwatch)(void *image, uint64_t handle);
  ssize_t (*read)(void *image, uint64_t offset, size_t count, char *bytes);
  int (*flush)(void *image);
  int (*aio_create_completion)(void *argument, clinux_rbd_callback done, void **completion);
  ssize_t (*aio_get_return_value)(void *completion);
  void (*aio_release)(void *completion);
  int (*aio_readv)(void *image, const struct iovec *pieces, int count, uint64_t offset, void *completion);
  int (*aio_writev)(void *image, const struct iovec *pieces, int count, uint64_t offset, void *completion);
  int (*aio_flush)(void *image, void *completion);
  int (*aio_discard)(void *image, uint64_t offset, uint64_t length, void *completion);
  int (*aio_write_zeroes)(void *image, uint64_t offset, size_t length, void *completion, int zero_flags, int flags);
};

// Fills the table. Returns NULL, or what is missing: a message of the loader, or a function's name. The library is never
// unloaded.
static inline const char *clinux_rbd_load(struct clinux_rbd *table) {
  // It depends on librados, so dlsym finds the functions of both.
  void *library = dlopen("librbd.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *reason = dlerror();
    return reason ? reason : "it cannot be loaded";
  }
  static const char *const names[] = {
      "rados_create",
      "rados_conf_read_file",
      "rados_conf_set",
      "rados_conf_get",
      "rados_connect",
      "rados_cluster_fsid",
      "rados_shutdown",
      "rados_ioctx_create",
      "rados_ioctx_set_namespace",
      "rados_ioctx_destroy",
      "rbd_open",
      "rbd_open_read_only",
      "rbd_close",
      "rbd_get_id",
      "rbd_get_size",
      "rbd_get_features",
      "rbd_config_image_list",
      "rbd_config_image_list_cleanup",
      "rbd_lock_acquire",
      "rbd_lock_release",
      "rbd_lock_get_owners",
      "rbd_lock_get_owners_cleanup",
      "rbd_lock_break",
      "rbd_watchers_list",
      "rbd_watchers_list_cleanup",
      "rbd_update_watch",
      "rbd_update_unwatch",
      "rbd_read",
      "rbd_flush",
      "rbd_aio_create_completion",
      "rbd_aio_get_return_value",
      "rbd_aio_release",
      "rbd_aio_readv",
      "rbd_aio_writev",
      "rbd_aio_flush",
      "rbd_aio_discard",
      "rbd_aio_write_zeroes",
  };
  enum { count = sizeof(names) / sizeof(names[0]) };
  _Static_assert(sizeof(struct clinux_rbd) == count * sizeof(void *), "each function has a name");
  void **places = (void **)table;
  for (size_t index = 0; index < count; index++) {
    places[index] = dlsym(library, names[index]);
    if (!places[index]) return names[index];
  }
  return NULL;
}

// Registers a function that runs at exit before the libraries' own exit handlers, because they were loaded before this call.
static inline int clinux_on_exit(void (*body)(int status, void *argument)) { return on_exit(body, NULL); }

#endif
