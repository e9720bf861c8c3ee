/// What a run leaves on the system while it lasts: back-ends that it started, and scratch files.
internal import Glibc
internal import Synchronization

/// Owners end and remove what is theirs. A process that a signal ends does not run its owners' cleanup, and a back-end in its
/// own process group does not get the terminal's signal, so everything is removed at once.
public enum Leftovers {
  private struct State {
    var groups: Set<pid_t> = []
    var files: Set<String> = []
    var folders: Set<String> = []
    var isOver = false
  }
  private static let state = Mutex(State())

  /// Kills the back-ends and removes the files. What is started from now on is killed at once.
  ///
  /// Only for a process that ends right afterwards: owners that are still working find nothing.
  public static func end() {
    state.withLock { state in
      state.isOver = true
      for group in state.groups { kill(-group, SIGKILL) }
      for file in state.files { unsafe unlink(file) }
      for folder in state.folders { unsafe rmdir(folder) }
    }
  }

  /// Starts a process that leads its own group, and records it before a signal can be handled.
  ///
  /// - Parameter start: returns its number; `nil` if there is none.
  static func keep(_ start: () -> pid_t?) -> pid_t? {
    state.withLock { state in
      guard let group = start() else { return nil }
      state.groups.insert(group)
      if state.isOver { kill(-group, SIGKILL) }
      return group
    }
  }

  /// Call it when the process has been killed and not yet waited for, so that its number has not been reused.
  static func forget(group: pid_t) { _ = state.withLock { $0.groups.remove(group) } }

  static func keep(folder: String) { _ = state.withLock { $0.folders.insert(folder) } }
  static func keep(file: String) { _ = state.withLock { $0.files.insert(file) } }
  static func forget(folder: String, files: [String]) {
    state.withLock { state in
      state.folders.remove(folder)
      state.files.subtract(files)
    }
  }
}
