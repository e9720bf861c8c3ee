/// What this program depends on of librbd's settings.

/// Settings of an image, as they hold: a client's may be overridden by those of the pool, and these by those of the image.
struct RBDSettings: Sendable {
  struct Setting: Sendable, Hashable {
    var name: String
    var value: String
    /// Where it comes from: 0: the client, 1: the pool, 2: the image.
    var source: Int32

    /// The command that takes it away.
    func remedy(for location: RBDLocation) -> String {
      switch source {
      case 2:
        let image = [location.pool, location.namespace, location.image].filter { !$0.isEmpty }.joined(separator: "/")
        return "rbd config image rm \(image) \(name)"
      case 1: return "rbd config pool rm \(location.pool) \(name)"
      default: return "ceph config rm client \(name)"
      }
    }
  }

  private let list: [Setting]

  init(_ list: [Setting]) { self.list = list }

  /// What is asked for, of every connection. Readers depend on the last one alone.
  static let wanted = [
    // What is acknowledged is in the cluster: nobody else can lose it, and a server that is killed does not.
    ("rbd_cache", "false"), ("rbd_persistent_cache_mode", "disabled"),
    // A driver may change what is being written. The library has to write what it has a checksum of, or it never ends.
    ("rbd_disable_zero_copy_writes", "true"),
    // Who lost the lock must not write any more.
    ("rbd_blocklist_on_break_lock", "true"),
    // It is a queue's thread that submits, which must not wait for the cluster.
    ("rbd_non_blocking_aio", "true"),
  ]

  subscript(name: String) -> String? { list.first { $0.name == name }?.value }

  /// Those that are another thing than is wanted. One that a release of the library does not know does nothing.
  func others(isReadOnly: Bool) -> [Setting] {
    Self.wanted.suffix(isReadOnly ? 1 : Self.wanted.count).compactMap { wanted in
      list.first { $0.name == wanted.0 && Self.plain($0.value) != wanted.1 }
    }
  }

  /// A value of an image or a pool is as somebody wrote it.
  private static func plain(_ value: String) -> String {
    switch value.lowercased() {
    case "1", "yes", "on": "true"
    case "0", "no", "off": "false"
    case let word: word
    }
  }
}
