//! Many packets of multifd, one after the other.

use super::super::Input;
use super::super::multifd::{HEADER_BYTES, Head, Method, Packet, Pages};

fn packet(block: &[u8], normal: &[u64], zero: &[u64]) -> Vec<u8> {
    let mut bytes = [0; HEADER_BYTES];
    let head = Head { sync: false, method: Method::None, room: 128, number: 1, block, normal, zero };
    head.put(normal.len() * 4096, &mut bytes).unwrap();
    bytes.to_vec()
}

#[test]
fn a_packet_is_read_in_the_memory_of_the_one_before() {
    let pages: Vec<u64> = (0..64).map(|page| page * 4096).collect();
    let mut bytes = packet(b"the longest name", &pages, &pages);
    bytes.extend(packet(b"ram", &pages[..3], &[]));
    bytes.extend(packet(b"", &[], &pages[..2]));
    let mut input = Input::from_bytes(bytes, 0);
    let mut former = Pages::default();
    let mut places = Vec::new();
    for (block, normal, zero) in [(&b"the longest name"[..], 64, 64), (b"ram", 3, 0), (b"", 0, 2)] {
        // The bytes of the pages themselves are not there.
        let Some(Packet::Pages(read)) = Packet::read_over(former, &mut input).unwrap() else { panic!("pages") };
        assert_eq!((&read.block[..], &read.normal[..], &read.zero[..]), (block, &pages[..normal], &pages[..zero]));
        places.push((read.block.as_ptr(), read.normal.as_ptr(), read.zero.as_ptr()));
        former = read;
    }
    assert!(places.iter().all(|place| *place == places[0]), "nothing was allocated for the later ones");
    assert_eq!(Packet::read_over(former, &mut input), Ok(None));
}
