/// Why an image of a Ceph cluster cannot be used: one sentence each that says what to do.
internal import Glibc
public import SystemPackage
internal import VirtioCore

/// Why an image of a Ceph cluster cannot be used: one sentence each that says what to do.
public enum RBDFailure: Error, Hashable, Sendable, CustomStringConvertible {
  /// librbd cannot be loaded. - reason: what the loader says.
  case noLibrary(String)
  /// The text, and why it does not name an image.
  case badName(String, String)
  /// The configuration cannot be read. - path: `nil`: the default ones.
  case noConfiguration(path: String?, Errno)
  /// The cluster does not answer, or does not let the user in.
  case noConnection(uri: String, Errno)
  /// There is no such pool, or the user may not use it.
  case noPool(uri: String, pool: String, Errno)
  /// There is no such image, or it cannot be opened.
  case noImage(uri: String, name: String, Errno)
  /// The cluster has not answered for this many seconds.
  case noAnswer(uri: String, seconds: Int)
  /// It is a snapshot, and read-only was not requested.
  case snapshotsAreOnlyRead(uri: String)
  /// The image lacks the feature exclusive-lock, so that two clients could write to it.
  case noExclusiveLock(uri: String, name: String)
  /// Another client has its lock. - owner: that client's address, as the cluster reports it.
  case locked(uri: String, owner: String)
  /// The lock cannot be acquired.
  case cannotLock(uri: String, Errno)
  /// A setting has a value that cannot be used. - remedy: a command.
  case setOtherwise(uri: String, setting: String, value: String, remedy: String)
  /// Its caller no longer waits for it.
  case givenUp(uri: String)
  /// It has no bytes.
  case empty(uri: String)
  /// Its size is not a multiple of the logical block size; bytes.
  case oddSize(uri: String, size: UInt64, blockSize: Int)
  /// It was closed while it was still in use.
  case closed(uri: String)
  /// The system cannot start the thread that opens it.
  case noThread(Errno)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .noLibrary(let reason):
      "RBD needs Ceph's librbd, of release 16 or later, which is not available here (\(printable(reason))): install the package librbd1"
    case .badName(let text, let reason):
      "\(printable(text)) is not the name of an image in a Ceph cluster, because \(printable(reason)): write "
        + "rbd:POOL/IMAGE[@SNAPSHOT][?conf=PATH&id=NAME]"
    case .noConfiguration(let path?, let error):
      "Ceph's configuration \(printable(path)) cannot be used (\(error)): name the right one with ?conf=PATH"
    case .noConfiguration(nil, let error):
      "Ceph's configuration cannot be used (\(error)): write /etc/ceph/ceph.conf, or name another with ?conf=PATH"
    case .noConnection(let uri, .timedOut):
      "the Ceph cluster of \(printable(uri)) does not answer: start its monitors, or check that its configuration has their addresses"
    case .noConnection(let uri, let error)
    where [.permissionDenied, .notPermitted, .noSuchFileOrDirectory, .notSupported].contains(error):
      "the Ceph cluster of \(printable(uri)) denies this user access (\(error)): name another with ?id=NAME, or make its keyring "
        + "readable for this process"
    case .noConnection(let uri, let error): "the Ceph cluster of \(printable(uri)) cannot be connected to: \(error)"
    case .noPool(_, let pool, .noSuchFileOrDirectory):
      "the Ceph cluster has no pool \(printable(pool)): name another, or create it with 'ceph osd pool create \(printable(pool))'"
    case .noPool(let uri, let pool, let error):
      "the pool \(printable(pool)) of \(printable(uri)) cannot be used (\(error)): give the user 'profile rbd' for it"
    case .noImage(let uri, let name, .noSuchFileOrDirectory) where name.contains("@"):
      "there is no \(printable(uri)): 'rbd snap ls \(printable(String(name.prefix { $0 != "@" })))' shows the image's snapshots"
    case .noImage(let uri, let name, .noSuchFileOrDirectory):
      "there is no \(printable(uri)): create it with 'rbd create --size 1G \(printable(name))', or name another"
    case .noImage(let uri, let name, .noFunction):
      "\(printable(uri)) has features that this release of librbd does not know: see 'rbd info \(printable(name))'"
    case .noImage(let uri, _, let error)
    where [.permissionDenied, .notPermitted].contains(error):
      "\(printable(uri)) cannot be opened (\(error)): give the user 'profile rbd' for its pool"
    case .noImage(let uri, _, let error): "\(printable(uri)) cannot be opened: \(error)"
    case .noAnswer(let uri, let seconds):
      "the Ceph cluster of \(printable(uri)) has not answered for \(seconds) s: look at 'ceph -s', and start its OSDs"
    case .snapshotsAreOnlyRead(let uri): "\(printable(uri)) is a snapshot, which can only be read: serve it with --read-only"
    case .noExclusiveLock(let uri, let name):
      "\(printable(uri)) has no exclusive lock, so two clients could write to it: run 'rbd feature enable \(printable(name)) "
        + "exclusive-lock', or --no-lock if you are sure"
    case .locked(let uri, let owner):
      "\(printable(uri)) is in use by \(printable(owner)): stop that client, or use --break-lock, after which the cluster rejects all its requests"
    case .cannotLock(let uri, .resourceBusy):
      "\(printable(uri)) has a lock of another kind: see 'rbd lock ls', and remove it with 'rbd lock rm' if nobody uses it"
    case .cannotLock(let uri, let error):
      "\(printable(uri)) cannot be locked (\(error)): give the user 'profile rbd' for the cluster and the pool"
    case .setOtherwise(let uri, let setting, let value, let remedy):
      "\(printable(uri)) cannot be served with \(setting) = \(printable(value)), which would lose writes or let queues hang: "
        + "run '\(printable(remedy))'"
    case .givenUp(let uri): "\(printable(uri)) is not opened, because nobody waits for it any more"
    case .empty(let uri): "\(printable(uri)) has size 0: give it one with 'rbd resize'"
    case .oddSize(let uri, let size, let blockSize):
      "\(printable(uri)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): resize it with 'rbd resize'"
    case .closed(let uri): "\(printable(uri)) is closed"
    case .noThread(let error):
      "no thread can be created to open an image of a Ceph cluster (\(error)): raise the limit ('ulimit -u')"
    }
  }
}
