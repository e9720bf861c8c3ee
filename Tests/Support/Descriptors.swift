/// Descriptors for tests.
internal import Glibc
public import VirtioCore

/// An unnamed pair of UNIX stream sockets; they do not block.
public func socketPair() -> (OwnedDescriptor, OwnedDescriptor) {
  var ends: [Int32] = [-1, -1]
  let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
  precondition(unsafe socketpair(AF_UNIX, kind, 0, &ends) == 0)
  return (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
}

/// An eventfd.
public func eventCounter() -> OwnedDescriptor {
  do { return try OwnedDescriptor.eventCounter() } catch { preconditionFailure("\(error)") }
}
