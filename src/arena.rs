//! Names of records in pages: 32 bits for a page and an offset. Pure.
//!
//! Records start at multiples of eight bytes, so 32 bits address 32 GiB, and take half the size of a pointer.

/// Records start at multiples of this.
pub const UNIT_BYTES: usize = 8;

/// The address of a record in pages of `PAGE_BYTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<const PAGE_BYTES: usize> {
    /// Index of the page.
    pub page: usize,
    /// Offset in the page, a multiple of [`UNIT_BYTES`].
    pub offset: usize,
}

impl<const PAGE_BYTES: usize> Address<PAGE_BYTES> {
    const UNITS_IN_PAGE: usize = PAGE_BYTES / UNIT_BYTES;
    /// Pages that 32 bits can address. No record has the last number, `u32::MAX`, so a user can give that number
    /// another meaning.
    pub const PAGES_MAX: usize = u32::MAX as usize / Self::UNITS_IN_PAGE;

    /// The address with this number.
    #[inline]
    pub const fn from_number(number: u32) -> Self {
        let number = number as usize;
        Self { page: number / Self::UNITS_IN_PAGE, offset: number % Self::UNITS_IN_PAGE * UNIT_BYTES }
    }

    /// The number of the address.
    ///
    /// # Panics
    /// If the page is not below [`Self::PAGES_MAX`].
    #[inline]
    pub fn number(self) -> u32 {
        assert!(self.page < Self::PAGES_MAX, "a page beyond 32 bits");
        (self.page * Self::UNITS_IN_PAGE + self.offset / UNIT_BYTES) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_agree_up_to_the_last_page() {
        type Small = Address<1024>;
        let mut number = 0;
        for page in 0..3 {
            for offset in (0..1024).step_by(UNIT_BYTES) {
                let address = Small { page, offset };
                assert_eq!((address.number(), Small::from_number(number)), (number, address));
                number += 1;
            }
        }
        let last = Small { page: Small::PAGES_MAX - 1, offset: 1024 - UNIT_BYTES };
        assert!(last.number() < u32::MAX);
        assert_eq!(Small::from_number(last.number()), last);
    }
}
