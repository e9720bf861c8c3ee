/// A folder for a socket and an image, removed with its last owner.
internal import Glibc

final class ScratchFolder {
  let path: String
  private var names: [String] = []

  struct Failed: Error, CustomStringConvertible { let description: String }

  init() throws {
    // Short, because a socket's path has to be.
    let template = Array("/tmp/vmm-blk-conform-XXXXXX".utf8CString)
    let place = UnsafeMutableBufferPointer<CChar>.allocate(capacity: template.count)
    defer { unsafe place.deallocate() }
    _ = unsafe place.initialize(from: template)
    guard let start = place.baseAddress, unsafe mkdtemp(start) != nil else {
      throw Failed(description: "no temporary folder could be created in /tmp")
    }
    path = unsafe String(cString: start)
    Leftovers.keep(folder: path)
  }

  deinit {
    for name in names { unsafe unlink(path + "/" + name) }
    unsafe rmdir(path)
    Leftovers.forget(folder: path, files: names.map { path + "/" + $0 })
  }

  /// A path in the folder; a file there is removed at the end.
  func file(_ name: String) -> String {
    names.append(name)
    Leftovers.keep(file: path + "/" + name)
    return path + "/" + name
  }

  /// An image of zeroes.
  func image(_ name: String, bytes: UInt64) throws -> String {
    let path = file(name)
    let descriptor = unsafe creat(path, 0o600)
    guard descriptor >= 0 else { throw Failed(description: "no scratch image could be created: \(path)") }
    defer { close(descriptor) }
    guard ftruncate(descriptor, off_t(bytes)) == 0 else { throw Failed(description: "a scratch image has no room: \(path)") }
    return path
  }
}
