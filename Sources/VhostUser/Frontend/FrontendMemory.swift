/// The front-end describes guest memory.
public import VirtioCore

/// A region of guest memory together with the file it lies in.
public struct FrontendRegion: Sendable {
  public var region: MemoryRegion
  public var descriptor: OwnedDescriptor

  /// - Parameters:
  ///   - region: `offset` is where it begins in the file.
  ///   - descriptor: a file that can be mapped shared: a memfd, a file of hugetlbfs or tmpfs.
  public init(_ region: MemoryRegion, descriptor: OwnedDescriptor) {
    self.region = region
    self.descriptor = descriptor
  }
}

extension Frontend {
  /// Sets the dirty log of the back-end (needs LOG_SHMFD). It covers rings whose address asks for it, and buffers while bit 26
  /// is among the features.
  public func setLog(_ area: SharedArea, _ descriptor: OwnedDescriptor) throws(FrontendError) {
    try tell(.setLogBase, area.bytes, [descriptor])
  }

  /// Replaces all of guest memory with SET_MEM_TABLE. Without memory slots a back-end need not take more than 8 regions.
  public func setMemory(_ regions: [FrontendRegion]) throws(FrontendError) {
    try tell(.setMemoryTable, MemoryRegion.encode(table: regions.map(\.region)), regions.map(\.descriptor))
  }

  /// Adds one region (needs CONFIGURE_MEM_SLOTS).
  public func addMemory(_ region: FrontendRegion) throws(FrontendError) {
    try tell(.addMemoryRegion, region.region.singleBytes, [region.descriptor])
  }

  /// Removes one region (needs CONFIGURE_MEM_SLOTS).
  public func removeMemory(_ region: MemoryRegion) throws(FrontendError) {
    try tell(.removeMemoryRegion, region.singleBytes)
  }
}
