/// First come, first served, for what is off the hot path: it grows to the longest line there ever was.

struct Line<Element> {
  private var elements: [Element] = []
  private var first = 0

  /// A word of its own: checking it does not touch the elements.
  private(set) var isEmpty = true

  mutating func append(_ element: Element) {
    elements.append(element)
    isEmpty = false
  }

  mutating func removeFirst() -> Element? {
    guard first < elements.count else { return nil }
    let element = elements[first]
    first += 1
    if first == elements.count {
      elements.removeAll(keepingCapacity: true)
      first = 0
      isEmpty = true
    } else if first >= 1024, first * 2 > elements.count {
      // A line that never runs dry must not keep those who left it.
      elements.removeFirst(first)
      first = 0
    }
    return element
  }
}
