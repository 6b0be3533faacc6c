//! Writes a message of each kind into a directory, as the fuzzer's first inputs.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = PathBuf::from(std::env::args().nth(1).ok_or("usage: tree-seeds DIRECTORY")?);
    std::fs::create_dir_all(&corpus)?;
    let time = [0; 12];
    let file = [&[1, 1, b'f', 0xa4, 1][..], &time, &5u64.to_le_bytes()].concat();
    let with_digest = [&file[..], &[7; 32]].concat();
    let directory = vec![2, 1, b'd'];
    let end = [&[3, 0xed, 1][..], &time].concat();
    let link = [&[4, 1, b'l', 6, 0][..], b"../x/y"].concat();
    let left_out = vec![5, 1, b'o', 9, 0];
    let page = |entries: &[&[u8]]| [&(entries.len() as u16).to_le_bytes()[..], &entries.concat()].concat();
    let reason = [&[1, 0, 3][..], b"why"].concat();
    let entry = 1u64.to_le_bytes();
    let content = [&entry[..], &[0], &[7; 32], &3u32.to_le_bytes(), b"abc"].concat();
    let given_up = [&entry[..], &[1], &reason].concat();
    let open = [&[1][..], &[1; 16], &[2; 32], &[4, 4], &2u32.to_le_bytes(), b"treenameme"].concat();
    let messages: [(u8, Vec<u8>); 15] = [
        (1, open),
        (2, b"\0\x04name".to_vec()),
        (3, [&[2, 0, 3, 0][..], b"why"].concat()),
        (4, page(&[&directory, &file, &end, &left_out, &link, &end])),
        (4, page(&[&with_digest, &end])),
        (5, [&entry[..], &[4, 0, 0, 1, 2, 3], &reason].concat()),
        (6, page(&[&content, &given_up])),
        (7, page(&[&[&entry[..], &[0]].concat(), &given_up])),
        (8, [&entry[..], &[7; 32]].concat()),
        (9, [7; 80].to_vec()),
        (10, [&[2, 0, 3, 0][..], b"why"].concat()),
        (11, vec![1]),
        (12, [&[1, 0, 1, 0][..], b"f", &[0]].concat()),
        (13, [&100u32.to_le_bytes()[..], &[0x28, 0xb5, 0x2f, 0xfd]].concat()),
        (14, [&entry[..], &[0; 8], &[1, 1, 0], &entry].concat()),
    ];
    for (i, (tag, body)) in messages.into_iter().enumerate() {
        let message = [&[tag][..], &(body.len() as u32).to_le_bytes(), &body].concat();
        for checksum in [0, 1] {
            std::fs::write(corpus.join(format!("{i}-{checksum}")), [&[checksum][..], &message].concat())?;
        }
    }
    Ok(())
}
