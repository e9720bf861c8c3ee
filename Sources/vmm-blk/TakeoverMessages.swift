/// The messages of a takeover: lines of JSON on the control socket, described in Docs/takeover.md.
internal import Glibc
internal import MemoryFile
internal import OperatorWords
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice

enum Takeover {
  /// Of the messages, the state included. A member that changes its meaning, or one that has to be understood, makes a new one.
  static let version = 1
  /// How long a disk may be stopped for a server that takes it over, before it continues where it was.
  static let limit = Duration.seconds(10)

  /// How a disk reaches its guest.
  enum Transport: String {
    case vhostUser = "vhost-user"
    case memoryFile = "memory-file"
  }

  /// What one asks.
  struct Request: Codable {
    enum Verb: String, Codable {
      /// The first message: who asks, and which version of the protocol.
      case takeOver = "take-over"
      /// The state of a disk, which continues.
      case describe
      /// The state of a disk that is stopped from then on.
      case pause
      /// The disk is held at the taker: may it begin?
      case commit
      /// It has begun.
      case served
      /// It failed: the disk continues at the old server.
      case resume
    }

    var request: Verb
    var version: Int?
    var disk: String?
    /// With `resume`: why, for the log.
    var reason: String?
    /// With `take-over`: whether the control socket is wanted, too.
    var wantsControl: Bool?
  }

  /// The answer to `take-over`.
  struct Greeting: Codable {
    var version: Int
    var program: String
    /// One of `Transport`.
    var transport: String
    var disks: [Name]

    struct Name: Codable {
      /// Where it is served: the absolute path of its socket or memory file, or words.
      var disk: String
      var image: String
    }
  }

  /// The answer to `describe` and `pause`.
  struct Disk: Codable {
    var image: Image
    /// With vhost-user.
    var server: ServerState?
    /// With a memory file.
    var file: File?
    /// The limits of the disk, in the words of `--limit`; `nil`: none.
    var limits: String?
    /// When it stopped, nanoseconds of CLOCK_MONOTONIC; `nil`: it continues.
    var stillSince: UInt64?
  }

  /// A memory file. What its driver has set up is in it.
  struct File: Codable {
    /// Its open description, which holds the device's role: a place among the descriptors.
    var file: Int
    var device: MemoryFileDevice.Offer
  }

  /// The part of the state that belongs to the transport.
  enum Part {
    case server(ServerState)
    case file(File)
  }

  /// An image, as far as it is more than its path.
  struct Image: Codable {
    /// Of an image on a server, what names it for both processes.
    var path: String
    /// Bytes.
    var size: UInt64
    /// The open description that holds the lock, a place among the descriptors; `nil`: there is none.
    var lock: Int?
    /// What a driver is told with GET_ID.
    var serial: String
    /// A flush failed, so that none may succeed until the image is opened again.
    var flushFailed: Bool
    /// Of an export: all that was written is stable. `nil`: it may not be.
    var isStable: Bool?
    /// Of an export whose server went away and may have lost writes: for each thread of queues, whether it has to tell them with a
    /// flush that fails. `nil`: none has.
    var owing: [Bool]?
    /// Of an image of a Ceph cluster: what tells it from those of all clusters. `nil`: only its name is known.
    var identity: String?
  }

  /// The answer to `commit`, `served` and `resume`, and to requests that fail.
  struct Answer: Codable {
    /// Why not: one sentence.
    var error: String?
    /// The listening control socket, a place among the descriptors.
    var control: Int?
  }
}

extension Takeover.Disk {
  init(image: Takeover.Image, part: Takeover.Part, limits: String?, stillSince: UInt64?) {
    self.image = image
    self.limits = limits
    self.stillSince = stillSince
    switch part {
    case .server(let state): server = state
    case .file(let state): file = state
    }
  }

  /// `nil`: it contains none that is known here.
  var part: Takeover.Part? { server.map { .server($0) } ?? file.map { .file($0) } }
}
