//! RAM blocks, the block list, bitmaps, dirty logs.
