/// Addresses of NBD servers in the system's form.
internal import Glibc

/// Looked up once, when a disk is opened: a reconnection does not query a name server, and so does not wait for one.
@safe
struct NBDAddress: Sendable {
  /// A `sockaddr` of its family.
  let bytes: [UInt8]
  let isInternet: Bool

  /// The possible addresses of a server, best first. Looking up a host name may take long.
  ///
  /// - Parameter isConfined: this process cannot look up names.
  static func all(of location: NBDLocation, isConfined: Bool) throws(NBDFailure) -> [NBDAddress] {
    switch location.place {
    case .unix(let path): [try unix(path, location.text)]
    case .internet(let host, let port): try internet(host, port, location.text, isConfined: isConfined)
    }
  }

  /// Whether a host is a numeric address, as in certificates.
  static func isNumber(_ host: String) -> Bool {
    var address = in6_addr()
    return unsafe inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1
  }

  private static func unix(_ path: String, _ uri: String) throws(NBDFailure) -> NBDAddress {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let room = MemoryLayout.size(ofValue: address.sun_path)
    let bytes = Array(path.utf8)
    guard bytes.count < room else { throw .noAddress(uri: uri, "a socket's path has at most \(room - 1) bytes") }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { place in unsafe place.copyBytes(from: bytes) }
    return NBDAddress(bytes: unsafe withUnsafeBytes(of: &address) { unsafe Array($0) }, isInternet: false)
  }

  private static func internet(
    _ host: String, _ port: UInt16, _ uri: String, isConfined: Bool
  ) throws(NBDFailure) -> [NBDAddress] {
    var hints = unsafe addrinfo()
    unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    unsafe hints.ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG
    var list: UnsafeMutablePointer<addrinfo>?
    // As a numeric address first, which queries no name server.
    unsafe hints.ai_flags = AI_NUMERICSERV | AI_NUMERICHOST
    var result = unsafe getaddrinfo(host, "\(port)", &hints, &list)
    if result != 0 {
      guard !isConfined else { throw .needsNumbers(uri: uri) }
      unsafe hints.ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG
      result = unsafe getaddrinfo(host, "\(port)", &hints, &list)
    }
    guard result == 0 else {
      throw .noAddress(uri: uri, "the host \(host) is not known (\(unsafe String(cString: gai_strerror(result))))")
    }
    defer { unsafe freeaddrinfo(list) }
    var found: [NBDAddress] = []
    var next = unsafe list
    while let entry = unsafe next {
      let bytes = unsafe UnsafeRawBufferPointer(start: entry.pointee.ai_addr, count: Int(entry.pointee.ai_addrlen))
      found.append(NBDAddress(bytes: unsafe Array(bytes), isInternet: true))
      unsafe next = entry.pointee.ai_next
    }
    return found
  }
}
