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

  /// What is asked for, of every connection.
  static let wanted = [
    // What is acknowledged is in the cluster: nobody else can lose it, and a server that is killed does not.
    ("rbd_cache", "false"), ("rbd_persistent_cache_mode", "disabled"),
    // A driver may change what is being written. The library has to write what it has a checksum of, or it never ends.
    ("rbd_disable_zero_copy_writes", "true"),
    // Whoever submits is a queue's thread, which must not wait for the cluster.
    ("rbd_non_blocking_aio", "true"),
    // Who lost the lock must not write any more.
    ("rbd_blocklist_on_break_lock", "true"),
  ]

  subscript(name: String) -> String? { list.first { $0.name == name }?.value }

  /// Those that are another thing than is wanted. One that a release of the library does not know does nothing.
  var others: [Setting] {
    Self.wanted.compactMap { wanted in list.first { $0.name == wanted.0 && $0.value != wanted.1 } }
  }
}
