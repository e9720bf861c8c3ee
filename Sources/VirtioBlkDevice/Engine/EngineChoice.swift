/// Which engine serves an image, and why.
public import SystemPackage
internal import VirtioCore

/// The engines, by their names on the command line.
public enum EngineKind: String, CaseIterable, Sendable {
  /// The best engine for the image.
  case auto
  /// io_uring.
  case uring
  /// Copies of cached pages, and io_uring for the rest.
  case cached
  /// libaio, which is asynchronous only for images that bypass the page cache.
  case aio
  /// Plain system calls in the queue's own thread.
  case sync
  /// Plain system calls in a pool of threads.
  case threads
  /// Copies to and from a mapping of the image.
  case mapped
  /// Nothing: requests succeed and move no data.
  case null
  /// Commands to an NBD server, with libnbd; only for NBD exports, and the only engine for them that moves data.
  case nbd
  /// Requests to a Ceph cluster, with librbd; only for images of a cluster, and the only engine for them that moves data.
  case rbd
}

/// The chosen engine, with a sentence for the log.
struct EngineChoice {
  var kind: EngineKind
  /// Why this engine: one line.
  var reason: String
  /// Something that the user should know: a better engine is not available.
  var warning: String?
  /// The mapping, for engines that copy.
  var mapped: MappedImage?

  /// - Throws: if an engine that was named cannot be used.
  static func resolve(_ wanted: EngineKind, _ setup: UringSetup, image: ImageFile) throws(EngineError) -> EngineChoice {
    if let export = image.export { return try resolve(wanted, export) }
    if image.rbd != nil { return try resolve(ofCluster: wanted, image) }
    if image.chain != nil { return try resolve(ofChain: wanted, image) }
    // Checked for every engine that may make a ring: a polling ring gets only errors from a medium without polled queues.
    if setup.poll != .off, [.uring, .cached, .auto].contains(wanted), wanted == .cached || !image.canPoll {
      throw .cannotPoll(path: image.path)
    }
    switch wanted {
    case .null: return EngineChoice(kind: .null, reason: "no medium: requests succeed and move no data")
    case .sync: return EngineChoice(kind: .sync, reason: "plain system calls in the queue's thread, as requested")
    case .aio: return EngineChoice(kind: .aio, reason: "libaio, as requested")
    case .threads: return EngineChoice(kind: .threads, reason: "plain system calls in a pool of threads, as requested")
    case .mapped:
      do throws(Errno) {
        return EngineChoice(
          kind: .mapped, reason: "copies to and from a mapping of the image, as requested", mapped: try MappedImage(image))
      } catch { throw .cannotMap(path: image.path, error) }
    case .uring:
      do throws(Errno) { try UringEngine.probe() } catch { throw .uringUnavailable(error) }
      return EngineChoice(kind: .uring, reason: "io_uring, as requested")
    case .cached:
      guard !image.isDirect else { throw .notCached(path: image.path) }
      do throws(Errno) { try UringEngine.probe() } catch { throw .uringUnavailable(error) }
      do throws(Errno) {
        return EngineChoice(
          kind: .cached, reason: "copies of what is in the page cache, io_uring for the rest, as requested",
          mapped: try MappedImage(image, isCache: true))
      } catch { throw .cannotMap(path: image.path, error) }
    case .nbd: throw .noExport(path: image.path)
    case .rbd: throw .notInCluster(path: image.path)
    case .auto: break
    }
    if image.isInMemory { return inMemory(image) }
    do throws(Errno) {
      try UringEngine.probe()
      if image.isCached, let mapped = try? MappedImage(image, isCache: true) {
        return EngineChoice(
          kind: .cached, reason: "copies of what is in the page cache, io_uring for the rest", mapped: mapped)
      }
      return EngineChoice(kind: .uring, reason: "io_uring: the image is on a medium that can block")
    } catch {
      let kind: EngineKind = image.isDirect ? .aio : .sync
      return EngineChoice(
        kind: kind,
        reason: kind == .aio ? "libaio: io_uring is not available" : "plain system calls: io_uring is not available",
        warning: "io_uring cannot be used here (\(error)), so requests go through "
          + (kind == .aio ? "libaio" : "plain system calls")
          + "; \(error.uringRemedy), or use --engine \(kind.rawValue)")
    }
  }
}

extension EngineChoice {
  /// Whether workers with this engine can share a thread with others: the medium never blocks, and no option asks for special
  /// treatment of the thread.
  func canShare(_ image: ImageFile, _ options: BlockDeviceOptions) -> Bool {
    guard options.threads == nil, options.processors.isEmpty, options.faults.isEmpty, options.witness == nil,
      options.plant == nil,
      // The states of zones and the wear of a device are read from files, which may block.
      image.zones == nil, image.lifetime == nil
    else { return false }
    switch options.waiting {
    case .sleep, .adaptive: break
    case .poll, .busy: return false
    }
    switch kind {
    case .null: return true
    // A block device in memory may have a backing device, like zram.
    case _ where image.chain != nil: return false
    case .mapped, .sync: return options.sharesAnyMedium || image.isInMemory && !image.isBlockDevice
    case .auto, .uring, .cached, .aio, .threads, .nbd, .rbd: return false
    }
  }

  private static func resolve(_ wanted: EngineKind, _ export: NBDExport) throws(EngineError) -> EngineChoice {
    switch wanted {
    case .auto, .nbd:
      EngineChoice(
        kind: .nbd,
        reason: export.facts.canMultiConn
          ? "libnbd: a connection for each thread"
          : "libnbd: one connection, because the server does not announce that several may write")
    case .null: EngineChoice(kind: .null, reason: "no medium: requests succeed and move no data")
    case .uring, .cached, .aio, .sync, .threads, .mapped, .rbd: throw .notForExports(wanted, uri: export.uri)
    }
  }

  private static func resolve(ofCluster wanted: EngineKind, _ image: ImageFile) throws(EngineError) -> EngineChoice {
    switch wanted {
    case .auto, .rbd: EngineChoice(kind: .rbd, reason: "librbd: one handle for all threads")
    case .null: EngineChoice(kind: .null, reason: "no medium: requests succeed and move no data")
    case .uring, .cached, .aio, .sync, .threads, .mapped, .nbd: throw .notForClusters(wanted, uri: image.path)
    }
  }

  private static func resolve(ofChain wanted: EngineKind, _ image: ImageFile) throws(EngineError) -> EngineChoice {
    switch wanted {
    case .auto where image.isInMemory:
      EngineChoice(kind: .mapped, reason: "qcow2: copies to and from mappings of the images: they are in memory")
    case .mapped where image.isInMemory:
      EngineChoice(kind: .mapped, reason: "qcow2: copies to and from mappings of the images, as requested")
    case .auto, .cached:
      EngineChoice(
        kind: .cached,
        reason: "qcow2: copies of what is in the page cache, a pool of threads for the rest"
          + (wanted == .auto ? "" : ", as requested"))
    case .threads: EngineChoice(kind: .threads, reason: "qcow2: plain system calls in a pool of threads, as requested")
    case .sync: EngineChoice(kind: .sync, reason: "qcow2: plain system calls in the queue's thread, as requested")
    case .null: EngineChoice(kind: .null, reason: "no medium: requests succeed and move no data")
    case .uring, .aio, .mapped, .nbd, .rbd: throw .notForChains(wanted, path: image.path)
    }
  }

  /// Memory never blocks, but io_uring does not know that: each request would go through a kernel worker thread.
  private static func inMemory(_ image: ImageFile) -> EngineChoice {
    let plain = EngineChoice(
      kind: .sync, reason: "plain system calls in the queue's thread: the image is in memory and never blocks")
    // The page cache of a block device is not the device's memory: a mapping would be a second copy.
    guard !image.isBlockDevice else { return plain }
    do throws(Errno) {
      return EngineChoice(
        kind: .mapped, reason: "copies to and from a mapping of the image: it is in memory", mapped: try MappedImage(image))
    } catch {
      var choice = plain
      choice.warning =
        "the image cannot be mapped (\(error)), so requests go through plain system calls, which are slower: "
        + "raise the limit of address space ('ulimit -v'), on hugetlbfs the number of pages (vm.nr_hugepages), or use --engine sync"
      return choice
    }
  }
}

/// Why an engine that was named cannot be used.
public enum EngineError: Error, Hashable, CustomStringConvertible {
  /// The system refuses io_uring, or an option of it that was requested.
  case uringUnavailable(Errno)
  /// IOPOLL was requested, and the device under the image has no polled queues.
  case cannotPoll(path: String)
  /// The image cannot be mapped.
  case cannotMap(path: String, Errno)
  /// The cached engine was requested, and the image bypasses the page cache.
  case notCached(path: String)
  /// The image is an export of an NBD server, and the engine is for files.
  case notForExports(EngineKind, uri: String)
  /// The engine is for exports of NBD servers, and the image is not one.
  case noExport(path: String)
  /// The image is in a Ceph cluster, and the engine is for other images.
  case notForClusters(EngineKind, uri: String)
  /// The engine is for images of Ceph clusters, and the image is not one.
  case notInCluster(path: String)
  /// The image is a qcow2 image, which the engine does not serve.
  case notForChains(EngineKind, path: String)
  /// The NBD server accepts only one connection that writes, and several threads were requested.
  case oneConnection(uri: String, threads: Int)
  /// Not 1 … 256 queues.
  case badQueueCount(Int)
  /// The size of the largest ring is not a power of two from 4 to 32768.
  case badQueueSize(Int)
  /// Fewer than one thread, or more than there are queues.
  case badThreadCount(Int)
  /// A thread is to be pinned to a CPU that this machine does not have.
  case badProcessor(Int, online: Int)
  /// A field of the configuration space has a value that is not possible. - Parameter remedy: what is possible.
  case badConfiguration(ConfigurationField, String)
  /// Faults are to be injected, and the null engine has no medium.
  case nothingToFail
  /// A zoned disk cannot stop its queues when the medium fails a request.
  case zonesCannotStall
  /// The system refuses descriptors or memory.
  case noResources(Errno)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .uringUnavailable(let error):
      "io_uring cannot be used here (\(error)): use --engine auto; \(error.uringRemedy)"
    case .cannotPoll(let path):
      "the device behind \(path) has no polled queues, so io_uring cannot poll it: leave IOPOLL off, or open an NVMe device "
        + "whose driver was loaded with poll_queues"
    case .cannotMap(let path, let error):
      "the image \(path) cannot be mapped (\(error)): use --engine auto, or raise the limit of address space ('ulimit -v')"
    case .notCached(let path):
      "the image \(path) bypasses the page cache, and the cached engine copies out of it: use --direct off, or --engine auto"
    case .notForExports(let kind, let uri):
      "\(printable(uri)) is an export of an NBD server, and the engine \(kind.rawValue) is for files: leave --engine out"
    case .notForChains(let kind, let path):
      "\(printable(path)) is a qcow2 image, which the engine \(kind.rawValue) does not serve here: leave --engine out, "
        + "or use cached, threads or sync"
    case .notForClusters(let kind, let uri):
      "\(printable(uri)) is an image of a Ceph cluster, and the engine \(kind.rawValue) is for other images: leave --engine out"
    case .notInCluster(let path):
      "\(printable(path)) is a file or a device, and the engine rbd is for images of Ceph clusters: leave --engine out"
    case .noExport(let path):
      "\(printable(path)) is a file or a device, and the engine nbd is for exports of NBD servers: leave --engine out"
    case .oneConnection(let uri, let threads):
      "the server of \(printable(uri)) does not announce that several connections may write, so \(threads) threads are not possible: leave "
        + "--threads out, or start the server so that it accepts several connections (qemu-nbd --shared)"
    case .badQueueCount(let count): "\(count) queues are not possible: use 1 to 256"
    case .badQueueSize(let size): "a queue size of \(size) is not a power of two from 4 to 32768"
    case .badThreadCount(let count): "\(count) threads are not possible: use 1 up to the number of queues"
    case .badProcessor(let cpu, let online): "there is no CPU \(cpu) to pin to: this machine has CPUs 0 to \(online - 1)"
    case .badConfiguration(let field, let remedy): "the configuration's \(field.rawValue) is invalid: \(remedy)"
    case .nothingToFail: "the null engine has no medium that could fail: choose another engine, or inject nothing"
    case .zonesCannotStall:
      "a zoned disk cannot stop a queue when its image fails a request, because writes of other queues wait for it: leave out --on-error"
    case .noResources(let error):
      "the system refuses descriptors or memory for the device (\(error)): raise the limits ('ulimit -n', 'ulimit -v')"
    }
  }
}

extension Errno {
  /// What to do if io_uring is refused with this error.
  fileprivate var uringRemedy: String {
    switch self {
    case .noMemory: "raise the limit of locked memory, which the rings count against ('ulimit -l', LimitMEMLOCK=)"
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem: "raise the limit of open files ('ulimit -n', LimitNOFILE=)"
    case .noFunction: "Linux has it from 5.10 on, and containers often forbid it (io_uring_setup in the seccomp profile)"
    default: "containers often forbid it: allow io_uring_setup in the seccomp profile"
    }
  }
}
