//! The default hash function, under a name of our own, so that exchanging it is no breaking change.

use std::hash::{BuildHasher, Hasher};

/// The default hash function of the caches: aHash with a random key for each cache, so that no
/// client can choose keys that collide.
#[derive(Debug, Clone)]
pub struct DefaultHashBuilder(ahash::RandomState);

impl Default for DefaultHashBuilder {
    fn default() -> Self {
        Self(ahash::RandomState::new())
    }
}

impl BuildHasher for DefaultHashBuilder {
    type Hasher = DefaultHasher;

    #[inline]
    fn build_hasher(&self) -> DefaultHasher {
        DefaultHasher(self.0.build_hasher())
    }
}

/// The hasher of [`DefaultHashBuilder`].
#[derive(Debug, Clone)]
pub struct DefaultHasher(ahash::AHasher);

/// Passes on each width by its own method, as aHash treats each in its own way.
macro_rules! pass_on {
    ($($write:ident: $width:ty),*) => {
        impl Hasher for DefaultHasher {
            #[inline]
            fn finish(&self) -> u64 {
                self.0.finish()
            }

            #[inline]
            fn write(&mut self, bytes: &[u8]) {
                self.0.write(bytes);
            }

            $(#[inline]
            fn $write(&mut self, value: $width) {
                self.0.$write(value);
            })*
        }
    };
}

pass_on!(write_u8: u8, write_u16: u16, write_u32: u32, write_u64: u64, write_u128: u128, write_usize: usize);
