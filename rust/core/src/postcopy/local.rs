//! A block whose missing pages come from a page source of this machine: the machinery of postcopy without a migration.
