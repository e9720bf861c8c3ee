/// All rows of the laboratory, for one image on one machine.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioBlkDevice

struct PathCatalogue {
  let image: ImageFile
  /// Where the back-end runs, and where the client does.
  let backendCPU: Int?
  let clientCPUs: [Int]
  /// The number of CPUs of this machine.
  let processors: Int
  /// Bytes of guest memory that registered buffers would pin.
  let guestMemory: Int

  var rows: [PathRow] { bare + engines + setups + waiting + notification }

  // MARK: Options

  private func options(_ change: (inout BlockDeviceOptions) -> Void) -> BlockDeviceOptions {
    var options = BlockDeviceOptions()
    options.processors = backendCPU.map { [$0] } ?? []
    change(&options)
    return options
  }

  private func uring(_ change: (inout UringSetup) -> Void) -> PathRow.Subject {
    .device(
      options {
        $0.engine = .uring
        change(&$0.uring)
      }, .init())
  }

  /// The engine that `auto` chooses for this image, and its bare loop.
  var automatic: (engine: EngineKind, limit: BareKind) {
    if image.isInMemory { return image.isBlockDevice ? (.sync, .pread) : (.mapped, .copy) }
    if image.isCached, BareUring.probe(flags: 0) == nil { return (.cached, .copy) }
    return BareUring.probe(flags: 0) == nil ? (.uring, .uringDeferred) : (image.isDirect ? (.aio, .aio) : (.sync, .pread))
  }

  // MARK: Rows

  private var bare: [PathRow] {
    func row(_ kind: BareKind, _ id: String, _ title: String, _ sentence: String) -> PathRow {
      PathRow(
        id: "bare-\(id)", group: .bare, title: title, sentence: sentence, flags: nil, limit: nil, subject: .bare(kind))
    }
    return [
      row(.uringPlain, "uring-plain", "io_uring, no flags", "A loop that submits, waits for one completion and takes all."),
      row(
        .uringDeferred, "uring", "io_uring, deferred",
        "The same with SINGLE_ISSUER and DEFER_TASKRUN: completions run when the loop asks for them."),
      row(
        .uringRegistered, "uring-registered", "io_uring, registered",
        "The same with the file, the buffers and the ring registered beforehand."),
      row(.aio, "aio", "libaio", "io_submit and io_getevents in a loop."),
      row(.pread, "pread", "pread/pwrite", "One plain system call after the other; depth makes no difference."),
      row(
        .copy, "copy", "copies",
        "Copies between buffers and a mapping of the image, small reads four at a time: no system call at all."),
    ]
  }

  private var engines: [PathRow] {
    func row(
      _ engine: EngineKind, _ id: String, _ title: String, _ limit: BareKind?, _ sentence: String, needs problem: String? = nil
    ) -> PathRow {
      PathRow(
        id: id, group: .engine, title: title, sentence: sentence, flags: "--engine \(engine.rawValue)", limit: limit,
        subject: problem.map { .impossible($0) } ?? .device(options { $0.engine = engine }, .init()))
    }
    return [
      row(
        .uring, "uring", "io_uring", .uringDeferred,
        "Kicks, completions and submissions share one ring; a turn costs one system call."),
      row(
        .cached, "cached", "page cache and io_uring", .copy,
        "Reads of what is in the page cache are copies out of a mapping; io_uring does everything else.", needs: cached),
      row(.aio, "aio", "libaio", .aio, "Native asynchronous I/O; with direct I/O on a disk it is as deep as io_uring."),
      row(
        .sync, "sync", "pread in the queue's thread", .pread,
        "Each request is a plain call in the queue's own thread: cheapest if the medium never blocks."),
      row(
        .threads, "threads", "thread pool", .pread,
        "Plain calls in a pool of threads: depth without io_uring, at the price of "
          + "hand-overs."),
      row(
        .mapped, "mapped", "mapped image", .copy,
        "Copies to and from a mapping of the image: for images in memory; on a disk a page fault stops the queue.",
        needs: image.isInMemory ? nil : cached),
      row(.null, "null", "null", nil, "Requests succeed and move nothing: the cost of the ring alone."),
    ]
  }

  private var setups: [PathRow] {
    func row(
      _ id: String, _ title: String, _ sentence: String, limit: BareKind = .uringDeferred, words: String? = nil,
      _ subject: PathRow.Subject, needs problem: String? = nil
    ) -> PathRow {
      PathRow(
        id: "uring-\(id)", group: .uring, title: title, sentence: sentence,
        flags: words.map { "--engine uring --uring \($0)" }, limit: limit,
        subject: problem.map { .impossible($0) } ?? subject)
    }
    return [
      row(
        "plain", "no flags", "The kernel interrupts the thread to run completions.", limit: .uringPlain,
        words: "plain", uring { $0.completion = .plain }),
      row(
        "cooperative", "COOP_TASKRUN", "Completions wait for the thread's next system call.",
        words: "cooperative", uring { $0.completion = .cooperative },
        needs: ring(UInt32(IORING_SETUP_COOP_TASKRUN), "COOP_TASKRUN", "5.19")),
      row(
        "deferred", "DEFER_TASKRUN", "Completions wait until the thread asks for them: the default.",
        words: "deferred", uring { $0.completion = .deferred },
        needs: ring(UInt32(IORING_SETUP_SINGLE_ISSUER) | UInt32(IORING_SETUP_DEFER_TASKRUN), "DEFER_TASKRUN", "6.1")),
      row(
        "sqpoll", "SQPOLL", "A kernel thread polls for submissions, wherever the scheduler puts it.",
        words: "sqpoll", uring { $0.completion = .submissionThread(cpu: nil) },
        needs: ring(UInt32(IORING_SETUP_SQPOLL), "SQPOLL", "5.11")),
      row(
        "sqpoll-cpu", "SQPOLL, own CPU", "A kernel thread polls for submissions on its own CPU.",
        words: spareCPU.map { "sqpoll=\($0)" }, uring { $0.completion = .submissionThread(cpu: spareCPU) },
        needs: spareCPU == nil
          ? "needs a third CPU, and this machine has \(processors)"
          : ring(UInt32(IORING_SETUP_SQPOLL), "SQPOLL", "5.11")),
      row(
        "iopoll", "IOPOLL", "The device is polled for completions, instead of waiting for its interrupt.",
        words: "iopoll", uring { $0.poll = .on }, needs: polling),
      row(
        "iopoll-hybrid", "IOPOLL, hybrid", "The same, sleeping for half of the usual time of a request.",
        words: "iopoll-hybrid", uring { $0.poll = .hybrid }, needs: polling),
      row(
        "no-file", "file not registered", "The image is looked up by its descriptor at each operation.",
        words: "no-file", uring { $0.registersFile = false }),
      row(
        "buffers", "registered buffers", "Guest memory is pinned once and named by number.", limit: .uringRegistered,
        words: "buffers", uring { $0.registersBuffers = true },
        needs: BareUring.probeBuffers(guestMemory).map {
          "registering \(guestMemory) bytes of memory failed (\($0)): raise the limit with 'ulimit -l'"
        }),
      row(
        "no-ring", "ring not registered", "The ring is looked up by its descriptor at each call.",
        words: "no-ring", uring { $0.registersRing = false }),
      row(
        "no-index-array", "NO_SQARRAY", "The submission ring has no second array to write.",
        words: "no-sqarray", uring { $0.usesIndexArray = false },
        needs: BareUring.probeWithoutArray().map {
          "the kernel does not make a ring with NO_SQARRAY (\($0)); Linux 6.6 does"
        }),
      row(
        "wait-8", "wait for 8", "The thread sleeps until eight operations are done, if that many are in flight.",
        words: "wait=8", uring { $0.minimumWait = 8 }),
      row(
        "batch-1", "submit each", "Each operation is submitted separately.", words: "batch=1",
        uring { $0.handover = .every(1) }),
      row(
        "batch-8", "submit 8", "Operations are submitted in groups of eight.", words: "batch=8",
        uring { $0.handover = .every(8) }),
      row(
        "whole", "submit whole turns", "A turn is submitted as a whole; by default a disk gets a few operations first.",
        words: "whole", uring { $0.handover = .whole }),
    ]
  }

  private var waiting: [PathRow] {
    let (engine, limit) = automatic
    func row(
      _ id: String, _ title: String, _ sentence: String, _ flags: String?, _ other: EngineKind? = nil,
      _ change: (inout BlockDeviceOptions) -> Void
    ) -> PathRow {
      PathRow(
        id: "wait-\(id)", group: .waiting, title: title, sentence: sentence, flags: flags,
        limit: other == nil ? limit : .uringDeferred,
        subject: .device(
          options {
            $0.engine = other ?? engine
            change(&$0)
          }, .init()))
    }
    return [
      row("sleep", "sleep at once", "The thread sleeps as soon as there is nothing to do.", "--waiting sleep") {
        $0.waiting = .sleep
      },
      row(
        "ring", "io_uring: kicks in the ring", "One call waits for kicks and completions together.",
        "--engine uring --waiting sleep", .uring
      ) {
        $0.waiting = .sleep
      },
      row(
        "epoll", "io_uring: eventfd and epoll",
        "Kicks come through epoll, completions through an eventfd, as in an event loop.",
        "--engine uring --uring epoll --waiting sleep", .uring
      ) {
        $0.uring.kicksThroughEpoll = true
        $0.waiting = .sleep
      },
      row("poll-50", "poll 50 us", "It polls for 50 us before it sleeps.", "--waiting poll:50") {
        $0.waiting = .poll(microseconds: 50)
      },
      row(
        "adaptive-50", "adaptive, up to 50 us", "It polls for as long as that has been paying off: the default.",
        "--waiting adaptive:50"
      ) {
        $0.waiting = .adaptive(maximumMicroseconds: 50)
      },
      row("busy", "busy", "It never sleeps: the queue occupies a CPU.", "--waiting busy") { $0.waiting = .busy },
    ]
  }

  private var notification: [PathRow] {
    let (engine, limit) = automatic
    func row(
      _ id: String, _ title: String, _ sentence: String, eventIndex: Bool = true, flags: String,
      _ notification: Notification
    ) -> PathRow {
      PathRow(
        id: "notify-\(id)", group: .notification, title: title, sentence: sentence, flags: flags, limit: limit,
        subject: .device(
          options {
            $0.engine = engine
            $0.notification = notification
          }, .init(sleeps: true, usesEventIndex: eventIndex)))
    }
    return [
      row(
        "each", "each completion", "A call after each request, without event indices.", eventIndex: false,
        flags: "--notify each", .each),
      row(
        "batch", "each batch", "A call after what one turn completed, without event indices.", eventIndex: false,
        flags: "--notify batch", .batch),
      row(
        "event-index", "EVENT_IDX", "The driver says at which index it wants to be called: the default.",
        flags: "--notify batch", .batch),
      row(
        "coalesce", "8 or 50 us", "A call after eight requests or 50 us, whichever comes first.",
        flags: "--notify coalesce:8:50", .coalesce(count: 8, microseconds: 50)),
    ]
  }

  // MARK: What is possible

  private func ring(_ flags: UInt32, _ name: String, _ version: String) -> String? {
    BareUring.probe(flags: flags).map { "the kernel does not make a ring with \(name) (\($0)); Linux \(version) does" }
  }

  private var cached: String? {
    image.isDirect ? "this is for images in the page cache, and this one bypasses it: use --direct off" : nil
  }

  private var polling: String? {
    image.canPoll ? nil : "the medium has no polled queues; an NVMe disk has them when its driver was loaded with poll_queues"
  }

  /// A CPU that neither side uses.
  private var spareCPU: Int? {
    (0..<processors).first { $0 != backendCPU && !clientCPUs.contains($0) }
  }
}
