/// What `vmm-blk --version` says.
internal import CVersion

enum Version {
  /// The program and its version, as other processes are told.
  static let text = "vmm-blk 0.10.0"

  /// With the commit that it was built from, if the build knew it.
  static var full: String {
    let commit = unsafe String(cString: cversion_commit())
    return commit.isEmpty ? text : "\(text) (\(commit))"
  }
}
