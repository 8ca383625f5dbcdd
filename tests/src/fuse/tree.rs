//! The files of the lab's file system, and which requests on them go wrong.

use std::collections::BTreeMap;

use nix::libc;

use super::protocol::{self, Op, Request, Shape};

/// Inode number of the root directory, fixed by the protocol.
pub(crate) const ROOT: u64 = 1;

/// Size of every file: a few pages, so that one mapping has pages to choose from.
pub(crate) const FILE_SIZE: u64 = 4 * PAGE;

/// Unit of the READ requests that faults send.
pub(crate) const PAGE: u64 = 4096;

/// A file or directory that exists from the start.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) parent: u64,
    pub(crate) name: &'static str,
    pub(crate) is_dir: bool,
    /// Each `stat` of it sends a GETATTR.
    pub(crate) volatile: bool,
}

impl Node {
    pub(crate) const fn dir(ino: u64, name: &'static str) -> Self {
        Self {
            ino,
            parent: ROOT,
            name,
            is_dir: true,
            volatile: false,
        }
    }

    pub(crate) const fn file(ino: u64, parent: u64, name: &'static str) -> Self {
        Self {
            ino,
            parent,
            name,
            is_dir: false,
            volatile: false,
        }
    }

    pub(crate) const fn volatile(self) -> Self {
        Self {
            volatile: true,
            ..self
        }
    }
}

/// A request that is not answered at once, or not well.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) op: Op,
    pub(crate) node: u64,
    pub(crate) which: Which,
    /// How many such requests it takes; later rules see the rest.
    pub(crate) times: u32,
    pub(crate) then: Then,
}

/// Which requests on a node a [`Rule`] takes.
#[derive(Clone, Copy)]
pub(crate) enum Which {
    All,
    Name(&'static str),
    Page(u64),
}

/// What happens to a request that a [`Rule`] takes.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// Answered at once with this error number.
    Fail(i32),
    /// Answered as usual, but only when the lab says so; the label tells the
    /// late requests apart.
    Late(&'static str),
    /// Answered as usual, after the thread that serves has done something itself that the
    /// lab tells it to ([`super::Server::send`]); until then it serves nobody.
    Errand(&'static str),
}

/// Answer to one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    Now(Vec<u8>),
    Late(&'static str, Vec<u8>),
    AfterErrand(&'static str, Vec<u8>),
}

/// All files and rules of one scenario.
#[derive(Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    rules: Vec<Rule>,
    /// Directories that waiters made; they only have to have attributes.
    made: BTreeMap<u64, Shape>,
    /// What is in files that are no zeros.
    content: BTreeMap<u64, Vec<u8>>,
}

/// First inode number of a directory made at run time.
const FIRST_MADE: u64 = 1000;

impl Tree {
    pub(crate) fn new(nodes: &[Node], rules: &[Rule]) -> Self {
        Self {
            nodes: nodes.to_vec(),
            rules: rules.to_vec(),
            made: BTreeMap::new(),
            content: BTreeMap::new(),
        }
    }

    /// With these bytes in a file. What is written to it is not kept.
    pub(crate) fn with(mut self, ino: u64, bytes: Vec<u8>) -> Self {
        self.content.insert(ino, bytes);
        self
    }

    pub(crate) fn answer(&mut self, request: &Request) -> Answer {
        if request.op.is_silent() {
            return Answer::None;
        }
        match self.verdict(request) {
            Some(Then::Fail(errno)) => Answer::Now(protocol::error(request.unique, errno)),
            Some(Then::Late(label)) => Answer::Late(label, self.reply(request)),
            Some(Then::Errand(label)) => Answer::AfterErrand(label, self.reply(request)),
            None => Answer::Now(self.reply(request)),
        }
    }

    fn verdict(&mut self, request: &Request) -> Option<Then> {
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.times > 0 && rule.takes(request))?;
        rule.times -= 1;
        Some(rule.then)
    }

    fn reply(&mut self, request: &Request) -> Vec<u8> {
        let unique = request.unique;
        match request.op {
            Op::Init => protocol::init(unique),
            Op::Lookup => match self.child(request) {
                Some(shape) => protocol::entry(unique, shape),
                None => protocol::error(unique, libc::ENOENT),
            },
            Op::Getattr | Op::Setattr => match self.shape(request.node) {
                Some(shape) => protocol::attr(unique, shape),
                None => protocol::error(unique, libc::ENOENT),
            },
            Op::Mkdir => {
                let shape = dir_shape(FIRST_MADE + self.made.len() as u64);
                self.made.insert(shape.ino, shape);
                protocol::entry(unique, shape)
            }
            Op::Open | Op::Opendir => protocol::opened(unique, request.direct),
            Op::Read if self.content.contains_key(&request.node) => {
                let content = &self.content[&request.node];
                let from = content.len().min(request.offset as usize);
                let until = content.len().min(from + request.size as usize);
                protocol::data(unique, &content[from..until])
            }
            Op::Read => {
                let size = FILE_SIZE
                    .saturating_sub(request.offset)
                    .min(u64::from(request.size));
                protocol::data(unique, &vec![0; size as usize])
            }
            Op::Write => protocol::written(unique, request.size),
            Op::Readdir => protocol::data(unique, &self.list(request)),
            Op::Statfs => protocol::statfs(unique),
            Op::Release | Op::Releasedir | Op::Flush | Op::Syncfs => protocol::empty(unique),
            Op::Forget | Op::BatchForget | Op::Interrupt | Op::Other => {
                protocol::error(unique, libc::ENOSYS)
            }
        }
    }

    fn child(&self, request: &Request) -> Option<Shape> {
        let name = request.name.as_deref()?;
        self.nodes
            .iter()
            .find(|node| node.parent == request.node && node.name == name)
            .map(|node| self.shape_of(node))
    }

    fn shape(&self, ino: u64) -> Option<Shape> {
        if ino == ROOT {
            return Some(dir_shape(ROOT));
        }
        self.nodes
            .iter()
            .find(|node| node.ino == ino)
            .map(|node| self.shape_of(node))
            .or_else(|| self.made.get(&ino).copied())
    }

    fn shape_of(&self, node: &Node) -> Shape {
        let size = self.content.get(&node.ino).map(|bytes| bytes.len() as u64);
        let shape = shape_of(node);
        Shape {
            size: size.unwrap_or(shape.size),
            ..shape
        }
    }

    fn list(&self, request: &Request) -> Vec<u8> {
        let mut out = Vec::new();
        let children = self
            .nodes
            .iter()
            .filter(|node| node.parent == request.node)
            .map(|node| (node.ino, node.name, node.is_dir));
        let entries = [(request.node, ".", true), (ROOT, "..", true)]
            .into_iter()
            .chain(children);
        for (at, (ino, name, is_dir)) in (1..).zip(entries) {
            if at > request.offset
                && !protocol::push_dirent(&mut out, request.size as usize, at, ino, name, is_dir)
            {
                break;
            }
        }
        out
    }
}

impl Rule {
    fn takes(&self, request: &Request) -> bool {
        let this_one = match self.which {
            Which::All => true,
            Which::Name(name) => request.name.as_deref() == Some(name),
            Which::Page(page) => request.offset == page * PAGE,
        };
        this_one && self.op == request.op && self.node == request.node
    }
}

fn shape_of(node: &Node) -> Shape {
    Shape {
        ino: node.ino,
        is_dir: node.is_dir,
        size: if node.is_dir { 0 } else { FILE_SIZE },
        volatile: node.volatile,
    }
}

fn dir_shape(ino: u64) -> Shape {
    Shape {
        ino,
        is_dir: true,
        size: 0,
        volatile: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &[Node] = &[Node::dir(2, "dir"), Node::file(3, 2, "file")];

    fn ask(op: Op, node: u64, name: Option<&str>, offset: u64) -> Request {
        Request {
            unique: 9,
            op,
            node,
            name: name.map(str::to_owned),
            offset,
            size: 4096,
            direct: false,
        }
    }

    #[test]
    fn rules_take_their_requests_in_order_and_then_stop() {
        let read = |times, then| Rule {
            op: Op::Read,
            node: 3,
            which: Which::Page(1),
            times,
            then,
        };
        let rules = [
            read(1, Then::Fail(libc::EIO)),
            read(1, Then::Late("held")),
            read(1, Then::Errand("sent")),
        ];
        let mut tree = Tree::new(NODES, &rules);
        let request = ask(Op::Read, 3, None, PAGE);
        assert_eq!(
            tree.answer(&request),
            Answer::Now(protocol::error(9, libc::EIO))
        );
        assert!(matches!(tree.answer(&request), Answer::Late("held", _)));
        assert!(matches!(
            tree.answer(&request),
            Answer::AfterErrand("sent", _)
        ));
        assert!(matches!(tree.answer(&request), Answer::Now(_)));
        let elsewhere = ask(Op::Read, 3, None, 0);
        assert!(matches!(tree.answer(&elsewhere), Answer::Now(_)));
    }

    #[test]
    fn names_are_looked_up_below_their_parent_only() {
        let mut tree = Tree::new(NODES, &[]);
        let missing = Answer::Now(protocol::error(9, libc::ENOENT));
        assert_eq!(
            tree.answer(&ask(Op::Lookup, ROOT, Some("file"), 0)),
            missing
        );
        assert_ne!(tree.answer(&ask(Op::Lookup, 2, Some("file"), 0)), missing);
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped() {
        let tree = Tree::new(NODES, &[]);
        let all = tree.list(&ask(Op::Readdir, 2, None, 0));
        assert_eq!(all.len(), 3 * 32);
        assert_eq!(tree.list(&ask(Op::Readdir, 2, None, 2)).len(), 32);
        assert!(tree.list(&ask(Op::Readdir, 2, None, 3)).is_empty());
    }

    #[test]
    fn a_made_directory_has_attributes() {
        let mut tree = Tree::new(NODES, &[]);
        tree.answer(&ask(Op::Mkdir, 2, Some("new"), 0));
        assert!(tree.shape(FIRST_MADE).is_some());
    }

    #[test]
    fn forgetting_needs_no_answer() {
        let mut tree = Tree::new(NODES, &[]);
        assert_eq!(tree.answer(&ask(Op::Forget, 2, None, 0)), Answer::None);
    }
}
