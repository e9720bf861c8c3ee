/// Where an image of a Ceph cluster is.

/// `rbd:POOL/IMAGE` or `rbd:POOL/NAMESPACE/IMAGE`, both followed by `@SNAPSHOT` for a snapshot. After a `?`, and separated by
/// `&`, there may be `conf=PATH`, the cluster's configuration, and `id=NAME`, the user. Their defaults are those of Ceph's own
/// tools.
public struct RBDLocation: Sendable, Hashable {
  /// The name of the pool.
  public var pool: String
  /// Empty: the default namespace of the pool.
  public var namespace = ""
  /// The name of the image.
  public var image: String
  /// The name of a snapshot of the image; `nil`: the image itself.
  public var snapshot: String?
  /// The path of the cluster's configuration; `nil`: the default of Ceph's own tools.
  public var configuration: String?
  /// The name of the user, without the prefix `client.`.
  public var user: String?

  private static let scheme = "rbd:"

  /// - Parameter text: begins with `rbd:`.
  /// - Throws: `badName`.
  public init(_ text: String) throws(RBDFailure) {
    func wrong(_ reason: String) -> RBDFailure { .badName(text, reason) }
    guard text.lowercased().hasPrefix(Self.scheme) else { throw wrong("it does not begin with 'rbd:'") }
    let parts = text.dropFirst(Self.scheme.count).split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    guard !parts[0].contains(":") else { throw wrong("options follow a '?', as in ?conf=PATH&id=NAME") }
    let names = parts[0].split(separator: "/", omittingEmptySubsequences: false)
    guard (2...3).contains(names.count) else { throw wrong("it does not name a pool and an image") }
    let last = names[names.count - 1].split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
    func name(_ text: Substring, _ what: String) throws(RBDFailure) -> String {
      guard let name = PercentText.decoded(text), !name.isEmpty, !name.contains("/") else { throw wrong("\(what) has no name") }
      return name
    }
    pool = try name(names[0], "the pool")
    if names.count == 3 { namespace = try name(names[1], "the namespace") }
    image = try name(last[0], "the image")
    if last.count == 2 { snapshot = try name(last[1], "the snapshot") }
    guard parts.count == 2 else { return }
    for word in parts[1].split(separator: "&", omittingEmptySubsequences: false) {
      let sides = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2, let value = PercentText.decoded(sides[1]), !value.isEmpty else {
        throw wrong("'\(word)' needs a value, as in id=NAME")
      }
      switch sides[0] {
      case "conf" where configuration == nil: configuration = value
      case "id" where user == nil:
        guard !value.hasPrefix("client.") else { throw wrong("'id' has to be without 'client.'") }
        user = value
      case "conf", "id": throw wrong("'\(sides[0])' is given twice")
      default: throw wrong("'\(sides[0])' is not known: use conf or id")
      }
    }
  }

  /// The text that `init` takes.
  public var text: String {
    func encoded(_ name: String) -> String {
      PercentText.encoded(name).split(separator: "@", omittingEmptySubsequences: false).joined(separator: "%40")
        .split(separator: ":", omittingEmptySubsequences: false).joined(separator: "%3a")
    }
    let words = [configuration.map { "conf=" + PercentText.encoded($0) }, user.map { "id=" + PercentText.encoded($0) }]
      .compactMap(\.self)
    return Self.scheme + ([pool] + (namespace.isEmpty ? [] : [namespace]) + [image]).map(encoded).joined(separator: "/")
      + (snapshot.map { "@" + encoded($0) } ?? "") + (words.isEmpty ? "" : "?" + words.joined(separator: "&"))
  }

  /// The name that Ceph's tools use: `POOL/IMAGE@SNAPSHOT`.
  public var name: String {
    ([pool] + (namespace.isEmpty ? [] : [namespace]) + [image]).joined(separator: "/") + (snapshot.map { "@" + $0 } ?? "")
  }

  /// The same with the configuration's path changed.
  public func mapPaths(_ change: (String) -> String) -> RBDLocation {
    var location = self
    location.configuration = configuration.map(change)
    return location
  }
}
