//! What the kernel says.

pub mod uffd {
    //! Of a fault.

    /// A thread touched a missing page.
    #[derive(Debug, Clone, Copy)]
    pub struct Fault {
        pub address: usize,
        pub thread: u32,
    }
}
