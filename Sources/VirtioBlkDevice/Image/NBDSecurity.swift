/// How a connection to an NBD server is protected (TLS): the peers that it trusts, and its own identity.
internal import CLinux
internal import Glibc
internal import SystemPackage

public struct NBDSecurity: Sendable, Hashable {
  enum Credentials: Sendable, Hashable {
    /// A folder with `ca-cert.pem`, whose certificates are trusted, and the client's own, if it has one: `client-cert.pem` and
    /// `client-key.pem`. - verified: the server has to prove that it has this name; `nil`: that of its URI.
    case certificates(folder: String, verified: String?, verifiesPeer: Bool)
    /// A key shared with the server, in a file with lines of `USER:KEY`.
    case key(file: String, user: String)
  }

  let credentials: Credentials

  /// The folder, or the file.
  public var path: String {
    switch credentials {
    case .certificates(let folder, _, _): folder
    case .key(let file, _): file
    }
  }

  /// Everything that the library may read: the folder or the file, and the files in the folder, which may be links.
  public var places: [String] {
    guard case .certificates(let folder, _, _) = credentials else { return [path] }
    return [folder] + ["ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"].map { folder + "/" + $0 }
  }

  /// The file that has to exist each time that a connection is made. If certificates are missing, the library takes that as a
  /// request for the system's, and verifies nothing (libnbd before 1.22).
  private var neededFile: String {
    switch credentials {
    case .certificates(let folder, _, _): folder + "/ca-cert.pem"
    case .key(let file, _): file
    }
  }

  /// Files that have to be readable if they exist.
  private var otherFiles: [String] {
    guard case .certificates = credentials else { return [] }
    return places.filter { $0 != path && $0 != neededFile }
  }

  init(_ words: [NBDLocation.Word: String], isUnix: Bool, _ wrong: (String) -> NBDFailure) throws(NBDFailure) {
    func refuse(_ others: [NBDLocation.Word], with word: NBDLocation.Word) throws(NBDFailure) {
      for other in others where words[other] != nil { throw wrong("'\(other.rawValue)' is not for '\(word.rawValue)'") }
    }
    switch (words[.certificates], words[.keyFile]) {
    case (let folder?, nil):
      try refuse([.user], with: .certificates)
      let verifies = words[.verifiesPeer] ?? "true"
      guard let verifiesPeer = Bool(verifies) else { throw wrong("'tls-verify-peer' has to be true or false") }
      guard !isUnix || !verifiesPeer || words[.hostName] != nil else {
        throw wrong(
          "a socket has no name that the server's certificate could be for, so 'tls-hostname=NAME' or 'tls-verify-peer=false' is needed"
        )
      }
      credentials = .certificates(folder: folder, verified: words[.hostName], verifiesPeer: verifiesPeer)
    case (nil, let file?):
      try refuse([.hostName, .verifiesPeer], with: .keyFile)
      guard let user = words[.user] else {
        throw wrong("it does not say which user's key to use, with 'tls-username=USER'")
      }
      credentials = .key(file: file, user: user)
    default: throw wrong("with TLS one of 'tls-certificates=FOLDER' and 'tls-psk-file=FILE' is needed")
    }
  }

  /// Identifies a file in one state and one place: any change of the file, or of its folder, changes a time.
  struct Trace: Equatable {
    private var numbers: [UInt64] = []

    fileprivate mutating func add(_ info: stat) {
      numbers += [
        UInt64(info.st_dev), UInt64(info.st_ino), UInt64(bitPattern: Int64(info.st_ctim.tv_sec)),
        UInt64(bitPattern: Int64(info.st_ctim.tv_nsec)),
      ]
    }
  }

  /// Checks the files and identifies their state. The library reads them somewhat later, so a caller that compares the results
  /// from before and after knows what the library read.
  ///
  /// - Returns: the state of what it needs.
  /// - Throws: if something that it needs cannot be read.
  func check(uri: String) throws(NBDFailure) -> Trace {
    var trace = Trace()
    if case .certificates(let folder, _, _) = credentials {
      var info = stat()
      guard unsafe stat(folder, &info) == 0 else {
        throw .noCredentials(uri: uri, path: folder, Errno(rawValue: errno))
      }
      trace.add(info)
    }
    do throws(Errno) {
      guard let info = try Self.look(neededFile) else { throw Errno.noSuchFileOrDirectory }
      trace.add(info)
    } catch { throw .noCredentials(uri: uri, path: neededFile, error) }
    for file in otherFiles {
      do throws(Errno) { _ = try Self.look(file) } catch { throw .noCredentials(uri: uri, path: file, error) }
    }
    return trace
  }

  /// Opens the file, because only that shows what a sandbox forbids; never waits for a pipe. - Returns: `nil` if it is not
  /// there.
  private static func look(_ file: String) throws(Errno) -> stat? {
    let descriptor = unsafe clinux_open(file, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0)
    guard descriptor >= 0 else {
      guard errno == ENOENT else { throw Errno(rawValue: errno) }
      return nil
    }
    defer { close(descriptor) }
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { throw Errno(rawValue: errno) }
    guard info.st_mode & S_IFMT == S_IFREG else {
      throw info.st_mode & S_IFMT == S_IFDIR ? Errno.isDirectory : Errno.invalidArgument
    }
    return info
  }
}
