//! The only unsafe: memory maps, userfaultfd, PAGEMAP_SCAN, raw vectors, probes.
