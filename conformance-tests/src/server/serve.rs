//! The server's own future: listeners, connections and commands, all polled in one place.

use std::collections::HashMap;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::channel::mpsc;
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::{FuturesUnordered, SelectAll};
use futures::{FutureExt, Stream, StreamExt};
use handover_core::{
    Datagrams, Guard, Handle, Kind as Descriptor, Listener, Runtime, Sockets, Start, State,
};

use super::actions::{Act, Waits};
use super::answers::{self, Answers, Task};
use super::outcomes::{Blob, tell_outcome};
use super::setup::{self, Kind, Listen};
#[cfg(feature = "tls")]
use super::tls;
use super::{Server, blocking, packets, resolve, signal_named, watch};
use crate::generation::{Command, Generation};
use crate::{Doing, Failure};

/// The sockets that every runtime has.
pub trait ServerSockets:
    Sockets<
        TcpListener: Listener,
        UnixListener: Listener,
        UdpSocket: Datagrams,
        UnixDatagram: Datagrams,
    >
{
}

impl<R> ServerSockets for R where
    R: Sockets<
            TcpListener: Listener,
            UnixListener: Listener,
            UdpSocket: Datagrams,
            UnixDatagram: Datagrams,
        >
{
}

/// The sockets of a runtime of futures: what [`Server::run`] needs, and no adapter has more.
pub trait AsyncSockets:
    ServerSockets<
        TcpListener: Listener<Connection: AsyncRead + AsyncWrite>,
        UnixListener: Listener<Connection: AsyncRead + AsyncWrite>,
    >
{
}

impl<R> AsyncSockets for R where
    R: ServerSockets<
            TcpListener: Listener<Connection: AsyncRead + AsyncWrite>,
            UnixListener: Listener<Connection: AsyncRead + AsyncWrite>,
        >
{
}

/// The sockets of a runtime of threads: what [`Server::run_blocking`] needs.
pub trait BlockingSockets:
    ServerSockets<
        TcpListener: Listener<Connection: Read + Write + AsFd>,
        UnixListener: Listener<Connection: Read + Write + AsFd>,
    >
{
}

impl<R> BlockingSockets for R where
    R: ServerSockets<
            TcpListener: Listener<Connection: Read + Write + AsFd>,
            UnixListener: Listener<Connection: Read + Write + AsFd>,
        >
{
}

/// How a connection of that listener is served.
type Answering<L, R> = fn(<L as Listener>::Connection, Answers<R>) -> Task;

/// A server that accepts on a TCP listener, and serves HTTP there, by itself.
pub(super) type Stack<R> = Box<dyn FnMut(<R as Sockets>::TcpListener, Answers<R>) -> Task + Send>;

/// How long to leave a listener alone that cannot accept, for a lack of descriptors.
const SHORTAGE: Duration = Duration::from_millis(20);

/// How many connections to take up at once.
const TURN: usize = 64;

pub(super) struct Serving<R: ServerSockets> {
    tcp: Answering<R::TcpListener, R>,
    unix: Answering<R::UnixListener, R>,
    /// In place of `tcp`, if there is one.
    stack: Option<Stack<R>>,
    #[cfg(feature = "tls")]
    tls: Option<Arc<tls::Config>>,
    generation: Generation,
    waits: Arc<Waits>,
    handle: Handle<R>,
    runtime: R,
    names: Vec<String>,
    files: HashMap<String, OwnedFd>,
    guards: Vec<Guard>,
    at_serving: Vec<Act>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Connections, as soon as they are accepted.
    incoming: SelectAll<Pin<Box<dyn Stream<Item = Task> + Send>>>,
    /// The same listeners once more, asked after the first.
    helpers: Vec<Pin<Box<dyn Stream<Item = Task> + Send>>>,
    tasks: FuturesUnordered<Task>,
    has_served: bool,
    /// Accepts nothing, as a program that is busy with something else.
    is_ignoring: bool,
}

impl<R: AsyncSockets> Serving<R> {
    /// Claims what a server of futures is to serve.
    pub(super) fn of_futures(
        server: &Server,
        start: &Start<R>,
        stack: Option<Stack<R>>,
    ) -> Result<Self, Failure> {
        Self::claim(server, start, answers::answer, answers::answer, stack)
    }
}

impl<R: BlockingSockets> Serving<R> {
    /// Claims what a server of threads is to serve.
    pub(super) fn of_threads(server: &Server, start: &Start<R>) -> Result<Self, Failure> {
        Self::claim(server, start, blocking::answer, blocking::answer, None)
    }
}

impl<R: ServerSockets> Serving<R> {
    fn claim(
        server: &Server,
        start: &Start<R>,
        tcp: Answering<R::TcpListener, R>,
        unix: Answering<R::UnixListener, R>,
        stack: Option<Stack<R>>,
    ) -> Result<Self, Failure> {
        let Some(commands) = server.take_commands() else {
            return Err(Failure::new("a server runs once"));
        };
        let runtime = start.runtime().cloned().ok_or_else(|| Failure::new("no runtime"))?;
        let mut serving = Self {
            tcp,
            unix,
            stack,
            #[cfg(feature = "tls")]
            tls: server.tls.get().cloned(),
            generation: server.generation.clone(),
            waits: Arc::clone(&server.waits),
            handle: start.handle(),
            runtime,
            names: Vec::new(),
            files: HashMap::new(),
            guards: Vec::new(),
            at_serving: server.acts("serving")?,
            commands,
            incoming: SelectAll::new(),
            helpers: Vec::new(),
            tasks: FuturesUnordered::new(),
            has_served: false,
            is_ignoring: false,
        };
        for listen in &server.listen {
            serving.listen(listen)?;
        }
        let caught = setup::list(server.generation.scenario(), "own-signals", signal_named)?;
        if !caught.is_empty() {
            let mut signals = serving.runtime.signals(&caught)?;
            let generation = server.generation.clone();
            serving.tasks.push(Box::pin(async move {
                while let Some(signal) = signals.next().await {
                    generation.tell("own signal", &[("signal", &signal)]);
                }
            }));
        }
        Ok(serving)
    }

    /// Never ends, unless the case wants it to.
    pub(super) async fn serve(mut self) -> Result<(), String> {
        let mut states = Box::pin(self.handle.states());
        let over = self.handle.drain().over();
        let generation = self.generation.clone();
        self.tasks.push(Box::pin(async move {
            over.await;
            generation.tell("stage", &[("stage", &"Over")]);
        }));
        poll_fn(move |context| {
            while let Poll::Ready(Some(state)) = states.poll_next_unpin(context) {
                self.changed(state);
            }
            while let Poll::Ready(Some(command)) = self.commands.poll_next_unpin(context) {
                if let Some(end) = self.carry_out(&command) {
                    return Poll::Ready(end);
                }
            }
            self.accept_all(context);
            while let Poll::Ready(Some(())) = self.tasks.poll_next_unpin(context) {}
            Poll::Pending
        })
        .await
    }

    /// Takes up the connections that wait, but no more than leave the others their turn: commands,
    /// and the driver beside this.
    fn accept_all(&mut self, context: &mut Context<'_>) {
        if self.is_ignoring {
            return;
        }
        let mut sources: Vec<&mut (dyn Stream<Item = Task> + Unpin)> = vec![&mut self.incoming];
        sources.extend(self.helpers.iter_mut().map(|helper| helper as _));
        for source in sources {
            for turn in 0..=TURN {
                if turn == TURN {
                    context.waker().wake_by_ref();
                    break;
                }
                let Poll::Ready(Some(connection)) = source.poll_next_unpin(context) else { break };
                self.tasks.push(connection);
            }
        }
    }

    fn changed(&mut self, state: State) {
        let stage = self.handle.drain().stage();
        let fields: [(&str, &dyn std::fmt::Display); 2] =
            [("state", &format!("{state:?}")), ("stage", &format!("{stage:?}"))];
        self.generation.tell("state", &fields);
        if state == State::Serving && !std::mem::replace(&mut self.has_served, true) {
            self.tell_serving();
            let (acts, generation) =
                (std::mem::take(&mut self.at_serving), self.generation.clone());
            let (waits, runtime) = (Arc::clone(&self.waits), self.runtime.clone());
            self.tasks.push(Box::pin(async move {
                for act in acts {
                    generation.tell("acts", &[("place", &"serving"), ("action", &act)]);
                    if let Err(failure) = act.perform_in(&generation, &waits, Some(&runtime)).await
                    {
                        generation.tell("failed to act", &[("reason", &failure)]);
                    }
                }
            }));
        }
    }

    fn tell_serving(&self) {
        let text = |name: &String| {
            self.handle.address(name).map(|address| address.to_string()).unwrap_or_default()
        };
        let number = self.handle.generation();
        let state = match self.generation.scenario().get("state.version") {
            Some("2") => self.handle.inherited_at_commit::<Blob<2>>().map(|blob| blob.0.len()),
            _ => self.handle.inherited_at_commit::<Blob<1>>().map(|blob| blob.0.len()),
        };
        let state = state.map_or("none".to_owned(), |bytes| bytes.to_string());
        let first = self.names.first().map(text).unwrap_or_default();
        let named: Vec<(String, String)> =
            self.names.iter().map(|name| (format!("address.{name}"), text(name))).collect();
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> =
            vec![("generation", &number), ("state", &state), ("address", &first)];
        if !self.generation.scenario().is_set("quiet") {
            let named = named.iter();
            fields.extend(named.map(|(key, text)| (key.as_str(), text as &dyn std::fmt::Display)));
        }
        self.generation.tell("serving", &fields);
    }

    fn listen(&mut self, listen: &Listen) -> Result<(), Failure> {
        let Listen { name, kind, address } = listen;
        let path = resolve(&self.generation, address);
        let handle = self.handle.clone();
        match *kind {
            Kind::Tcp => {
                let listener = handle.listen_tcp(name, address)?;
                let answers = self.answers(name);
                match &mut self.stack {
                    Some(stack) => self.tasks.push(stack(listener, answers)),
                    None => self.accept(answers, listener, self.tcp),
                }
            }
            #[cfg(feature = "tls")]
            Kind::Tls => {
                let listener = handle.listen_tcp(name, address)?;
                let tls = self.tls.clone();
                self.accept(Answers { tls, ..self.answers(name) }, listener, self.tcp);
            }
            Kind::Group(count) => {
                for listener in handle.listen_tcp_group(name, address, count)? {
                    self.accept(self.answers(name), listener, self.tcp);
                }
            }
            Kind::Unix => {
                let listener = handle.listen_unix(name, path)?;
                self.accept(self.answers(name), listener, self.unix);
            }
            Kind::Udp => {
                let socket = handle.udp(name, address)?;
                self.receive(name, socket);
            }
            Kind::UnixDatagram => {
                let socket = handle.unix_datagram(name, path)?;
                self.receive(name, socket);
            }
            Kind::Seqpacket => {
                let listener = handle.listen_seqpacket(name, path)?;
                let serving = packets::serve(listener, handle, self.runtime.clone());
                self.tasks.push(Box::pin(serving.map(drop)));
            }
            Kind::File => {
                let file = handle.descriptor(name, Descriptor::File, || {
                    File::options().append(true).create(true).open(&path)
                })?;
                self.files.insert(name.clone(), file);
            }
            Kind::Pipe => self.pipe(name)?,
        }
        if *kind == Kind::Pipe {
            return Ok(());
        }
        self.names.push(name.clone());
        if !self.generation.scenario().is_set("quiet") {
            let origin = self.handle.origin(name).map(|origin| format!("{origin:?}"));
            let address = self.handle.address(name).map(|address| address.to_string());
            self.generation.tell(
                "claimed",
                &[
                    ("name", &name),
                    ("origin", &origin.unwrap_or_default()),
                    ("address", &address.unwrap_or_default()),
                ],
            );
        }
        Ok(())
    }

    fn pipe(&mut self, name: &str) -> Result<(), Failure> {
        let mut writer = None;
        for (end, is_reader) in [("r", true), ("w", false)] {
            let name = format!("{name}.{end}");
            let made = self.handle.descriptor(&name, Descriptor::Pipe, || {
                if !is_reader && let Some(writer) = writer.take() {
                    return Ok(writer);
                }
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                writer = Some(write);
                Ok(read)
            })?;
            self.files.insert(name, made);
        }
        Ok(())
    }

    fn answers(&self, name: &str) -> Answers<R> {
        let (drain, runtime) = (self.handle.drain(), self.runtime.clone());
        Answers {
            drain,
            runtime,
            name: name.to_owned(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    fn accept<L: Listener>(
        &mut self,
        answers: Answers<R>,
        listener: L,
        answering: Answering<L, R>,
    ) {
        let name = answers.name.clone();
        let answers =
            move |connection: L::Connection| -> Task { answering(connection, answers.clone()) };
        let incoming = |listener| Incoming {
            listener,
            runtime: self.runtime.clone(),
            pause: None,
            generation: self.generation.clone(),
            name: name.clone(),
        };
        if self.generation.scenario().is_set("helped") {
            let helper = incoming(listener.clone()).map(answers.clone());
            self.helpers.push(Box::pin(helper));
        }
        self.incoming.push(Box::pin(incoming(listener).map(answers)));
    }

    fn receive<D: Datagrams>(&mut self, name: &str, socket: D) {
        let (generation, name) = (self.generation.clone(), name.to_owned());
        self.tasks.push(Box::pin(async move {
            let mut buffer = [0; 4096];
            loop {
                match poll_fn(|context| socket.poll_receive(context, &mut buffer)).await {
                    Ok(Some((length, from))) => {
                        let mut answer = format!("{} ", std::process::id()).into_bytes();
                        answer.extend_from_slice(&buffer[..length]);
                        // A sender without an address wants no answer.
                        let _ = socket.try_send(&answer, &from);
                    }
                    Ok(None) => return generation.tell("closed", &[("name", &name)]),
                    // What a datagram of ours has met reports itself here, once.
                    Err(error) => generation.tell("error", &[("name", &name), ("error", &error)]),
                }
            }
        }));
    }

    /// The end of the server, if the command is that.
    fn carry_out(&mut self, command: &Command) -> Option<Result<(), String>> {
        let get = |key: &str| command.get(key).unwrap_or_default().to_owned();
        let generation = self.generation.clone();
        match command.name.as_str() {
            "restart" => {
                let (outcome, id) = (self.handle.restart(), get("id"));
                self.tasks.push(Box::pin(async move {
                    tell_outcome(&generation, "answer", Some(&id), &outcome.await);
                }));
            }
            "ignore" | "attend" => self.is_ignoring = command.name == "ignore",
            "unhelp" => self.helpers.clear(),
            "stop" => self.handle.stop(),
            "quit" => self.handle.quit(),
            "add" => {
                let added = Listen::parse(&get("entry")).and_then(|listen| self.listen(&listen));
                if let Err(failure) = added {
                    generation.tell("not added", &[("error", &failure)]);
                }
            }
            "close" => {
                let found = self.handle.close(&get("name"));
                generation.tell("close", &[("name", &get("name")), ("found", &found)]);
            }
            "in-flight" => {
                generation.tell("in flight", &[("count", &self.handle.in_flight())]);
            }
            "catch-up" => {
                let runtime = self.runtime.clone();
                self.tasks.push(Box::pin(async move {
                    match watch::once(&runtime).await {
                        Ok(()) => generation.tell("caught up", &[]),
                        Err(failure) => {
                            generation.tell("failed to act", &[("reason", &failure)]);
                        }
                    }
                }));
            }
            "unclaimed" => {
                generation.tell("unclaimed", &[("names", &self.handle.unclaimed().join(" "))]);
            }
            "guard" => self.guards.push(self.handle.guard()),
            "unguard" => self.guards.clear(),
            "write" | "read" => {
                let done = self.transfer(&command.name, &get("name"), &get("text"));
                let text = done.unwrap_or_else(|failure| format!("failed: {failure}"));
                generation.tell(&command.name, &[("name", &get("name")), ("text", &text)]);
            }
            "end" if get("error").is_empty() => return Some(Ok(())),
            "end" => return Some(Err(get("error"))),
            "thread-act" => {
                let act = Act::parse(&get("action"));
                let done = act.and_then(|act| act.perform(&generation, &self.waits));
                if let Err(failure) = done {
                    generation.tell("failed to act", &[("reason", &failure)]);
                }
            }
            other => generation.tell("no such command", &[("command", &other)]),
        }
        None
    }

    fn transfer(&self, what: &str, name: &str, text: &str) -> Result<String, Failure> {
        let file = self.files.get(name).ok_or_else(|| Failure::new("no such descriptor"))?;
        let mut file = File::from(file.try_clone()?);
        if what == "write" {
            file.write_all(text.as_bytes()).doing("writing")?;
            return Ok(text.to_owned());
        }
        let mut bytes = [0; 4096];
        let length = file.read(&mut bytes).doing("reading")?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// The connections of a listener, which pauses where it cannot accept.
struct Incoming<L, R: Runtime> {
    listener: L,
    runtime: R,
    pause: Option<Pin<Box<R::Timer>>>,
    generation: Generation,
    name: String,
}

impl<L: Listener, R: Runtime> Stream for Incoming<L, R> {
    type Item = L::Connection;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<L::Connection>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok(Some(connection)) => return Poll::Ready(Some(connection)),
                Ok(None) => {
                    self.generation.tell("closed", &[("name", &self.name)]);
                    return Poll::Ready(None);
                }
                Err(error) => {
                    self.generation.tell("error", &[("name", &self.name), ("error", &error)]);
                    let again = self.runtime.now() + SHORTAGE;
                    self.pause = Some(Box::pin(self.runtime.timer(again)));
                }
            }
        }
    }
}
