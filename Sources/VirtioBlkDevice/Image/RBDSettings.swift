/// The settings of librbd that this program depends on.

/// The settings in effect for an image: those of the pool override the client's, and those of the image override both.
struct RBDSettings: Sendable {
  struct Setting: Sendable, Hashable {
    var name: String
    var value: String
    /// Where it comes from: 0: the client, 1: the pool, 2: the image.
    var source: Int32

    /// The command that removes it.
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

  /// What every connection requests. Readers depend only on the last one.
  static let wanted = [
    // Acknowledged writes are in the cluster, so a server that is killed does not lose them.
    ("rbd_cache", "false"), ("rbd_persistent_cache_mode", "disabled"),
    // A driver may change data while it is being written. The library has to write the data that it computed the checksum of,
    // or the write never ends.
    ("rbd_disable_zero_copy_writes", "true"),
    // A client that lost the lock must not write any more.
    ("rbd_blocklist_on_break_lock", "true"),
    // A queue's thread submits, and it must not wait for the cluster.
    ("rbd_non_blocking_aio", "true"),
  ]

  subscript(name: String) -> String? { list.first { $0.name == name }?.value }

  /// The settings with unwanted values. A setting that this release of the library does not know does not matter.
  func others(isReadOnly: Bool) -> [Setting] {
    Self.wanted.suffix(isReadOnly ? 1 : Self.wanted.count).compactMap { wanted in
      list.first { $0.name == wanted.0 && Self.plain($0.value) != wanted.1 }
    }
  }

  /// A value of an image or a pool has the form in which somebody wrote it.
  private static func plain(_ value: String) -> String {
    switch value.lowercased() {
    case "1", "yes", "on": "true"
    case "0", "no", "off": "false"
    case let word: word
    }
  }
}
