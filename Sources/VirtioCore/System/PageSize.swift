/// The size of a page of memory, which is not the same everywhere: 4096 on x86-64, up to 65536 on Arm.
internal import Glibc

/// The page size of this machine.
public enum PageSize {
  /// Bytes, a power of two; read once.
  public static let bytes: Int = {
    let size = Int(sysconf(Int32(_SC_PAGESIZE)))
    return size > 0 && size & (size - 1) == 0 ? size : 4096
  }()
}
