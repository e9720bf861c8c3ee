/// What `vmm-blk --version` says.
enum Version {
  static let text = "vmm-blk 0.9.0"
}
