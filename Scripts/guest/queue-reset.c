/* A driver in a process of the guest: four queues of a modern virtio-pci disk, each of which in turn is reset and
 * enabled again, with another size and at another address, while requests are in flight on all of them (virtio 2.6.1,
 * 4.1.4.3). Linux's driver never resets a queue of a disk.
 *
 *   queue-reset /sys/bus/pci/devices/ADDRESS       no driver may be bound to it; its contents are overwritten
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { QUEUES = 4, SLOTS = 4, ROUNDS = 24, PAGE = 4096, AVAIL = 1024, USED = 2048 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct queue {
  volatile uint8_t *ring;     /* A page: descriptors, then the available ring, then the used ring. */
  uint64_t ring_address;
  uint8_t *buffers;           /* A page: of each slot a header, a status and a block. */
  uint64_t buffer_address;
  uint16_t size, given, taken;
  volatile uint16_t *notify;
};

static uint8_t *common_base;
static struct queue queues[QUEUES];
static uint8_t *pages;
static uint64_t addresses[3 * QUEUES];

static void fail(const char *words) {
  printf("%s (%s)\n", words, strerror(errno));
  exit(1);
}

#define REGISTER(type, offset) (*(volatile type *)(common_base + (offset)))

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

/* A wait that takes ten minutes counts as hung. */
#define AWAIT(condition, words)                            \
  do {                                                     \
    double limit = now() + 600;                            \
    while (!(condition))                                   \
      if (now() > limit) fail(words);                      \
  } while (0)

static void *map_bar(const char *folder, int bar) {
  char path[256];
  snprintf(path, sizeof path, "%s/resource%d", folder, bar);
  int file = open(path, O_RDWR | O_SYNC);
  if (file < 0) fail("a BAR cannot be opened");
  struct stat about;
  if (fstat(file, &about) != 0) fail("a BAR has no size");
  void *place = mmap(NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (place == MAP_FAILED) fail("a BAR cannot be mapped");
  return place;
}

/* The guest-physical addresses of this process's pages. */
static void find_pages(void) {
  pages = mmap(NULL, sizeof addresses / 8 * PAGE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
  int map = open("/proc/self/pagemap", O_RDONLY);
  if (pages == MAP_FAILED || map < 0) fail("no memory");
  for (int page = 0; page < 3 * QUEUES; page++) {
    uint64_t word;
    memset(pages + page * PAGE, 0, PAGE);
    if (pread(map, &word, 8, ((uintptr_t)pages / PAGE + page) * 8) != 8 || !(word >> 63)) fail("a page has no address");
    addresses[page] = (word & ((1ull << 55) - 1)) * PAGE;
  }
}

static void enable(int number, uint16_t size, int page, uint8_t *notify, uint32_t multiplier) {
  struct queue *queue = &queues[number];
  queue->ring = pages + page * PAGE;
  queue->ring_address = addresses[page];
  queue->size = size;
  queue->given = queue->taken = 0;
  memset((void *)queue->ring, 0, PAGE);
  REGISTER(uint16_t, 0x16) = number;
  if (REGISTER(uint16_t, 0x18) < size) fail("a queue has no room");
  REGISTER(uint16_t, 0x18) = size;
  for (int part = 0; part < 3; part++) {
    uint64_t address = queue->ring_address + (part == 0 ? 0 : part == 1 ? AVAIL : USED);
    REGISTER(uint32_t, 0x20 + 8 * part) = (uint32_t)address;
    REGISTER(uint32_t, 0x24 + 8 * part) = (uint32_t)(address >> 32);
  }
  queue->notify = (uint16_t *)(notify + REGISTER(uint16_t, 0x1e) * multiplier);
  REGISTER(uint16_t, 0x1c) = 1;
  if (REGISTER(uint16_t, 0x1c) != 1) fail("a queue is not enabled");
}

static uint8_t *block_of(int number, int slot) { return queues[number].buffers + slot * 1024 + 512; }
static volatile uint8_t *status_of(int number, int slot) { return queues[number].buffers + slot * 1024 + 16; }

/* Submits a request of one block to the device, in the descriptors of its slot. */
static void submit(int number, int slot, uint32_t type, uint64_t sector) {
  struct queue *queue = &queues[number];
  volatile struct descriptor *table = (void *)queue->ring;
  uint64_t base = queue->buffer_address + slot * 1024;
  uint8_t *header = queue->buffers + slot * 1024;
  /* Three descriptors for each; a small ring has room for fewer requests. */
  int first = 3 * slot;
  memcpy(header, &type, 4);
  memset(header + 4, 0, 4);
  memcpy(header + 8, &sector, 8);
  *status_of(number, slot) = 0xff;
  table[first] = (struct descriptor){base, 16, 1, first + 1};
  table[first + 1] = (struct descriptor){base + 512, 512, type == 0 ? 3 : 1, first + 2};
  table[first + 2] = (struct descriptor){base + 16, 1, 2, 0};
  volatile uint16_t *avail = (uint16_t *)(queue->ring + AVAIL);
  avail[2 + queue->given % queue->size] = first;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  avail[1] = ++queue->given;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *queue->notify = number;
}

static int slots(int number) { return queues[number].size / 3 < SLOTS ? queues[number].size / 3 : SLOTS; }

/* All requests submitted to a queue are answered, with OK. */
static void settle(int number) {
  struct queue *queue = &queues[number];
  volatile uint16_t *used = (uint16_t *)(queue->ring + USED);
  AWAIT(used[1] == queue->given, "a request was not answered");
  queue->taken = queue->given;
  for (int slot = 0; slot < slots(number); slot++)
    if (*status_of(number, slot) != 0) fail("a request failed");
}

static uint64_t sector_of(int number, int slot) { return 64 + 16 * number + slot; }
static uint8_t pattern(int number, int slot, int round) { return 1 + (number * 61 + slot * 17 + round * 3) % 255; }

static void write_all(int number, int round) {
  for (int slot = 0; slot < slots(number); slot++) {
    memset(block_of(number, slot), pattern(number, slot, round), 512);
    submit(number, slot, 1, sector_of(number, slot));
  }
}

static void check_all(int number, int round) {
  for (int slot = 0; slot < slots(number); slot++) {
    memset(block_of(number, slot), 0, 512);
    submit(number, slot, 0, sector_of(number, slot));
  }
  settle(number);
  for (int slot = 0; slot < slots(number); slot++)
    for (int byte = 0; byte < 512; byte++)
      if (block_of(number, slot)[byte] != pattern(number, slot, round)) fail("a block does not read as it was written");
}

int main(int count, char **words) {
  static const uint16_t sizes[] = {64, 4, 16, 32, 8};
  char path[256];
  uint8_t config[256], *notify = NULL;
  uint32_t multiplier = 0;
  if (count != 2) fail("usage: queue-reset FOLDER");
  snprintf(path, sizeof path, "%s/config", words[1]);
  int file = open(path, O_RDWR);
  if (file < 0 || pread(file, config, sizeof config, 0) != sizeof config) fail("no configuration space");
  uint16_t command = (config[4] | config[5] << 8) | 6;
  if (pwrite(file, &command, 2, 4) != 2) fail("the function cannot be enabled");
  for (int at = config[0x34]; at; at = config[at + 1]) {
    if (config[at] != 9 || (config[at + 3] != 1 && config[at + 3] != 2)) continue;
    uint32_t offset;
    memcpy(&offset, config + at + 8, 4);
    uint8_t *place = (uint8_t *)map_bar(words[1], config[at + 4]) + offset;
    if (config[at + 3] == 1) {
      common_base = common_base ? common_base : place;
    } else if (!notify) {
      notify = place;
      memcpy(&multiplier, config + at + 16, 4);
    }
  }
  if (!common_base || !notify) fail("this is not a modern virtio function");
  find_pages();

  /* VERSION_1 is bit 32, RING_RESET bit 40. */
  REGISTER(uint8_t, 0x14) = 0;
  AWAIT(REGISTER(uint8_t, 0x14) == 0, "the device was not reset");
  REGISTER(uint8_t, 0x14) = 1;
  REGISTER(uint8_t, 0x14) = 3;
  REGISTER(uint32_t, 0x00) = 1;
  if ((REGISTER(uint32_t, 0x04) & 0x101) != 0x101) fail("RING_RESET is not offered");
  REGISTER(uint32_t, 0x08) = 0;
  REGISTER(uint32_t, 0x0c) = 0;
  REGISTER(uint32_t, 0x08) = 1;
  REGISTER(uint32_t, 0x0c) = 0x101;
  REGISTER(uint8_t, 0x14) = 11;
  if (REGISTER(uint8_t, 0x14) != 11) fail("the features were refused");
  if (REGISTER(uint16_t, 0x12) < QUEUES) fail("the device has fewer queues");
  for (int number = 0; number < QUEUES; number++) {
    queues[number].buffers = pages + (2 * QUEUES + number) * PAGE;
    queues[number].buffer_address = addresses[2 * QUEUES + number];
    enable(number, 16, number, notify, multiplier);
  }
  REGISTER(uint8_t, 0x14) = 15;

  for (int round = 0; round < ROUNDS; round++) {
    int reset = round % QUEUES;
    for (int number = 0; number < QUEUES; number++) write_all(number, round);
    REGISTER(uint16_t, 0x16) = reset;
    REGISTER(uint16_t, 0x3a) = 1;
    AWAIT(REGISTER(uint16_t, 0x3a) == 0, "a queue's reset does not end");
    if (REGISTER(uint16_t, 0x1c) != 0) fail("a queue is enabled after its reset");
    /* The old ring must not be written to. */
    uint8_t before[PAGE];
    memcpy(before, (void *)queues[reset].ring, PAGE);
    for (int number = 0; number < QUEUES; number++)
      if (number != reset) settle(number);
    for (int number = 0; number < QUEUES; number++)
      if (number != reset) check_all(number, round);
    if (memcmp(before, (void *)queues[reset].ring, PAGE) != 0) fail("a ring was written to after its reset");
    enable(reset, sizes[round % 5], round / QUEUES % 2 == 0 ? QUEUES + reset : reset, notify, multiplier);
    write_all(reset, round);
    settle(reset);
    check_all(reset, round);
  }
  if (REGISTER(uint8_t, 0x14) != 15) fail("the status is not what it was");
  REGISTER(uint8_t, 0x14) = 0;
  AWAIT(REGISTER(uint8_t, 0x14) == 0, "the device was not reset at the end");
  printf("INFO %d resets of one of %d queues\n", ROUNDS, QUEUES);
  return 0;
}
