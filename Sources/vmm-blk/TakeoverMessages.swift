/// The messages of a takeover: lines of JSON on the control socket, described in Docs/takeover.md.
internal import Glibc
internal import MemoryFile
internal import OperatorWords
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice

enum Takeover {
  /// The version of the messages, including the state. It changes when a member changes its meaning, or a new member has to be
  /// understood.
  static let version = 1
  /// How long a disk may be stopped for a server that takes it over, before it continues where it was.
  static let limit = Duration.seconds(10)

  /// How a disk reaches its guest.
  enum Transport: String {
    case vhostUser = "vhost-user"
    case memoryFile = "memory-file"
  }

  /// A request of the new server.
  struct Request: Codable {
    enum Verb: String, Codable {
      /// The first message: who asks, and which version of the protocol.
      case takeOver = "take-over"
      /// Asks for the state of a disk, which keeps running.
      case describe
      /// Stops a disk, and asks for its state.
      case pause
      /// The disk is held at the taker: may it begin?
      case commit
      /// The taker has begun.
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
      /// Where it is served: the absolute path of its socket or memory file, or words such as "descriptor 5".
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
    /// When it stopped, nanoseconds of CLOCK_MONOTONIC; `nil` if it is running.
    var stillSince: UInt64?
  }

  /// A memory file. What its driver has set up is in it.
  struct File: Codable {
    /// Its open file description, which holds the device's role: an index into the descriptors.
    var file: Int
    var device: MemoryFileDevice.Offer
  }

  /// The part of the state that belongs to the transport.
  enum Part {
    case server(ServerState)
    case file(File)
  }

  /// An image: its path, and what the path does not say.
  struct Image: Codable {
    /// The path; for an image on a server, the name that both processes have for it.
    var path: String
    /// Bytes.
    var size: UInt64
    /// The open file description that holds the lock, an index into the descriptors; `nil` if there is none.
    var lock: Int?
    /// What a driver is told with GET_ID.
    var serial: String
    /// A flush failed, so that none may succeed until the image is opened again.
    var flushFailed: Bool
    /// For an export: everything written is stable; `nil` if it may not be.
    var isStable: Bool?
    /// For an export whose server went away and may have lost writes: for each thread of queues, whether it still has to report
    /// that with a flush that fails; `nil` if none has.
    var owing: [Bool]?
    /// For an image in a Ceph cluster: what identifies it among the images of all clusters; `nil` if only its name is known.
    var identity: String?
  }

  /// The answer to `commit`, `served` and `resume`, and to requests that fail.
  struct Answer: Codable {
    /// Why not: one sentence.
    var error: String?
    /// The listening control socket, an index into the descriptors.
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

  /// `nil` if it contains no part that this program knows.
  var part: Takeover.Part? { server.map { .server($0) } ?? file.map { .file($0) } }
}
