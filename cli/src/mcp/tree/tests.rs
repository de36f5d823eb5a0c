//! What leads out stays out, however it is spelled and whenever it is swapped.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::fs::symlink, path::PathBuf};

use super::*;

/// A workspace beside what is none of the agent's business.
struct Yard {
    folder: tempfile::TempDir,
    root: Root,
}

impl Yard {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), "secret").unwrap();
        fs::create_dir(folder.path().join("work/src")).unwrap();
        fs::write(folder.path().join("work/src/a.rs"), "fn a() {}").unwrap();
        let root = Root::open(&folder.path().join("work"), None).unwrap();
        Self { folder, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.folder.path()).unwrap().join(name)
    }

    fn find(&self, name: &str) -> Result<Found, TreeError> {
        self.root.find(&Name::new(name).unwrap())
    }

    fn slot(&self, name: &str) -> Result<Slot, TreeError> {
        self.root.slot(&Name::new(name).unwrap())
    }

    fn outside(&self) -> String {
        fs::read_to_string(self.path("outside/secret")).unwrap()
    }
}

#[test]
fn a_path_names_a_place_of_the_tree_or_nothing() {
    for (path, place, name) in [
        ("a/b.rs", Place::Workspace, "a/b.rs"),
        ("./a//b.rs", Place::Workspace, "a/b.rs"),
        (".", Place::Workspace, "."),
        ("/workspace", Place::Workspace, "."),
        ("/workspace/a", Place::Workspace, "a"),
        ("/mem/notes.md", Place::Memory, "notes.md"),
    ] {
        let (of, named) = Place::of(path).unwrap();
        assert_eq!((of, named.text().as_str()), (place, name), "{path}");
    }
    let long = "a/".repeat(MAX_PATH);
    for path in [
        "",
        "..",
        "../x",
        "a/../b",
        "/workspace/../etc/passwd",
        "/mem/..",
        "/etc/passwd",
        "/workspaces/x",
        "/memory",
        "/",
        "//workspace/x",
        "a\0b",
        "a\nb",
        long.as_str(),
    ] {
        assert_eq!(Place::of(path).map(drop), Err(TreeError::Outside), "{path:.40}");
    }
}

#[test]
fn what_is_judged_is_where_it_really_is() {
    let yard = Yard::new();
    symlink("src", yard.path("work/link")).unwrap();
    let found = yard.find("link/a.rs").unwrap();
    assert_eq!(found.judged, yard.path("work/src/a.rs").to_str().unwrap());
    assert_eq!(found.read().unwrap(), "fn a() {}");
    assert_eq!(yard.slot("link/a.rs").unwrap().judged, found.judged);
    let new = yard.slot("link/new/b.rs").unwrap();
    assert_eq!(new.judged, yard.path("work/src/new/b.rs").to_str().unwrap());
}

#[test]
fn a_link_that_leads_out_leads_nowhere() {
    let yard = Yard::new();
    symlink("../outside", yard.path("work/relative")).unwrap();
    symlink(yard.path("outside"), yard.path("work/absolute")).unwrap();
    symlink("../outside/secret", yard.path("work/file")).unwrap();
    symlink("/proc/self/root", yard.path("work/magic")).unwrap();
    symlink(yard.path("work/src"), yard.path("work/back")).unwrap();
    symlink("../outside/new", yard.path("work/dangling")).unwrap();
    symlink("loop", yard.path("work/loop")).unwrap();
    for name in
        ["relative/secret", "absolute/secret", "file", "magic/etc/passwd", "back/a.rs", "loop"]
    {
        assert_eq!(yard.find(name).map(drop), Err(TreeError::Escape), "{name}");
        assert_eq!(yard.slot(name).map(drop), Err(TreeError::Escape), "{name}");
    }
    for name in ["relative/new", "absolute/new", "dangling", "dangling/deep"] {
        assert_eq!(yard.slot(name).map(drop), Err(TreeError::Escape), "{name}");
    }
    assert!(!yard.path("outside/new").exists());
}

#[test]
fn a_link_within_that_dangles_is_no_place_for_a_file() {
    let yard = Yard::new();
    symlink("src/none", yard.path("work/dangling")).unwrap();
    assert_eq!(yard.slot("dangling").map(drop), Err(TreeError::Escape));
}

#[test]
fn devices_sockets_and_pipes_are_not_used() {
    let yard = Yard::new();
    nix::unistd::mkfifo(&yard.path("work/pipe"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(yard.path("work/socket")).unwrap();
    for name in ["pipe", "socket"] {
        assert_eq!(yard.find(name).map(drop), Err(TreeError::Special), "{name}");
        assert_eq!(yard.slot(name).map(drop), Err(TreeError::Special), "{name}");
    }
    let devices = Root::open(Path::new("/dev"), None).unwrap();
    assert_eq!(devices.find(&Name::new("null").unwrap()).map(drop), Err(TreeError::Special));
}

#[test]
fn a_folder_swapped_for_a_link_after_the_decision_is_not_followed() {
    // Reading: the handle is of the file that was judged.
    let yard = Yard::new();
    let found = yard.find("src/a.rs").unwrap();
    fs::rename(yard.path("work/src"), yard.path("work/was")).unwrap();
    symlink("../outside", yard.path("work/src")).unwrap();
    fs::write(yard.path("outside/a.rs"), "stolen").unwrap();
    assert_eq!(found.read(), Err(TreeError::Moved));
    // Writing: neither the file that is there nor a new one, nor one in a folder that has to be made.
    let yard = Yard::new();
    let slots = ["src/a.rs", "src/b.rs", "src/new/c.rs"].map(|name| yard.slot(name).unwrap());
    fs::rename(yard.path("work/src"), yard.path("work/was")).unwrap();
    symlink("../outside", yard.path("work/src")).unwrap();
    for slot in slots {
        assert_eq!(slot.write(b"planted"), Err(TreeError::Moved));
    }
    let names = |folder: &str| fs::read_dir(yard.path(folder)).unwrap().count();
    assert_eq!((names("outside"), names("work/was")), (1, 1));
    // Listing and running in a folder.
    let yard = Yard::new();
    let found = yard.find("src").unwrap();
    fs::rename(yard.path("work/src"), yard.path("work/was")).unwrap();
    symlink("../outside", yard.path("work/src")).unwrap();
    assert_eq!(found.list(), Err(TreeError::Moved));
    assert_eq!(found.itself(), Err(TreeError::Moved));
}

#[test]
fn a_file_swapped_for_a_link_after_the_decision_is_not_followed() {
    let yard = Yard::new();
    let slot = yard.slot("src/a.rs").unwrap();
    fs::remove_file(yard.path("work/src/a.rs")).unwrap();
    symlink("../../outside/secret", yard.path("work/src/a.rs")).unwrap();
    // The content of the link's target is not read.
    assert_eq!(slot.read(), Err(TreeError::Escape));
    // The link itself is replaced, as its name was judged.
    slot.write(b"fn b() {}").unwrap();
    assert_eq!(yard.outside(), "secret");
    assert_eq!(yard.find("src/a.rs").unwrap().read().unwrap(), "fn b() {}");
    // A new name that became a link meanwhile, and a folder that did.
    let slots = ["src/new.rs", "src/deep/new.rs"].map(|name| yard.slot(name).unwrap());
    symlink("../../outside/planted", yard.path("work/src/new.rs")).unwrap();
    symlink("../../outside", yard.path("work/src/deep")).unwrap();
    let [new, deep] = slots;
    new.write(b"x").unwrap();
    assert!(deep.write(b"x").is_err());
    assert_eq!(fs::read_dir(yard.path("outside")).unwrap().count(), 1);
}

#[test]
fn a_file_is_written_whole_with_its_mode_and_its_folders() {
    let yard = Yard::new();
    let tool = yard.path("work/src/a.rs");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o750)).unwrap();
    yard.slot("src/a.rs").unwrap().write(b"new").unwrap();
    assert_eq!(fs::metadata(&tool).unwrap().permissions().mode() & 0o7777, 0o750);
    yard.slot("x/y/z.txt").unwrap().write(b"deep").unwrap();
    assert_eq!(fs::read_to_string(yard.path("work/x/y/z.txt")).unwrap(), "deep");
    let listed = yard.find(".").unwrap().list().unwrap();
    assert_eq!(listed, ["src/", "x/"]);
    assert_eq!(yard.find("src").unwrap().list().unwrap(), ["a.rs"], "nothing is left beside it");
}

#[test]
fn sizes_and_kinds_are_kept() {
    let yard = Yard::new();
    let large = vec![b'x'; MAX_FILE + 1];
    fs::write(yard.path("work/large"), &large).unwrap();
    assert_eq!(yard.find("large").unwrap().read(), Err(TreeError::TooLarge));
    assert_eq!(yard.slot("new").unwrap().write(&large), Err(TreeError::TooLarge));
    fs::write(yard.path("work/binary"), [0xff, 0xfe]).unwrap();
    assert_eq!(yard.find("binary").unwrap().read(), Err(TreeError::NotText));
    assert!(matches!(yard.find("src").unwrap().read(), Err(TreeError::Kind(_))));
    assert!(matches!(yard.find("binary").unwrap().list(), Err(TreeError::Kind(_))));
    assert!(matches!(yard.slot("src").map(drop), Err(TreeError::Kind(_))));
    assert!(matches!(yard.slot(".").map(drop), Err(TreeError::Kind(_))));
    assert!(matches!(yard.find("binary/x").map(drop), Err(TreeError::Kind(_))));
    assert_eq!(yard.find("none").map(drop), Err(TreeError::Missing));
}

#[test]
fn memory_is_judged_by_its_name() {
    let yard = Yard::new();
    let memory = Root::open(&yard.path("work"), Some("/mem")).unwrap();
    assert_eq!(memory.find(&Name::new("src/a.rs").unwrap()).unwrap().judged, "/mem/src/a.rs");
    assert_eq!(memory.slot(&Name::new("new").unwrap()).unwrap().judged, "/mem/new");
    assert_eq!(memory.find(&Name::new(".").unwrap()).unwrap().judged, "/mem");
    assert_eq!(memory.judged(&Name::new("none").unwrap()).unwrap(), "/mem/none");
}
