//! A copy of a log as a folder of tiles, fetched from whoever serves it, to be verified where it
//! cannot be changed any more.

use std::{fs, path::Path};

use aegis_api::Client;
use aegis_audit::{
    checkpoint,
    tile::{Resource, TILE_WIDTH, Tile},
};
use anyhow::Context as _;

/// Fetches a log up to its latest checkpoint into a folder, and tells its size. `progress` gets the
/// number of entries fetched and their total.
///
/// # Errors
/// When the log is not given, or a file cannot be written.
pub async fn tiles(
    client: &Client,
    folder: &Path,
    mut progress: impl FnMut(u64, u64),
) -> anyhow::Result<u64> {
    let note = client.get_text("/checkpoint").await?;
    let size = checkpoint::parse(&note).context("the log's checkpoint is refused")?.head.size;
    for tile in Tile::all(size) {
        let mut wanted = vec![Resource::Tile(tile)];
        if tile.level == 0 {
            wanted.push(Resource::Entries(tile.index, tile.width));
            progress(tile.index * TILE_WIDTH, size);
        }
        for resource in wanted {
            let bytes = client.get_bytes(&format!("/{resource}")).await?;
            write(&folder.join(resource.to_string()), &bytes)?;
        }
    }
    // Last: a reader of the folder finds whatever the checkpoint promises.
    write(&folder.join("checkpoint"), note.as_bytes())?;
    Ok(size)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
